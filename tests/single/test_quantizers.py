"""Quantized and pruned exports, against exact values."""

from __future__ import annotations

import copy
import json
from operator import attrgetter
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.zoo import cnn, mlp, transformer
from hvd_train.trained.exporting.calibration import Calibration
from hvd_train.trained.exporting.int8_state import restored, stored
from hvd_train.trained.exporting.pruning import prune_
from hvd_train.trained.exporting.quantizer import create, kinds

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torchao")

VOCABULARY, LENGTH = 512, 16
IMAGE = DataSpec((1, 8, 8), 10, "classification")
TEXT = DataSpec((LENGTH,), VOCABULARY, "language")


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return transformer.create(TEXT, layers=1, width=64).eval()


def image_model() -> nn.Module:
    torch.manual_seed(0)
    return cnn.create(IMAGE, channels=[16, 32]).eval()


def wide_model() -> nn.Module:
    torch.manual_seed(0)
    return mlp.create(IMAGE, hidden=[256]).eval()


class Tied(nn.Module):
    """One table as embedding and output layer, without a norm that would hide a shift of the rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, 64)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.table(x)), self.table.weight)


def tokens(number: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (number, LENGTH), generator=torch.Generator().manual_seed(seed))


def images(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def calibration(*batches: Tensor) -> Calibration:
    return Calibration(["x"], [(batch,) for batch in batches], lambda model, batch: model(*batch))


def quantized(model: nn.Module, kind: str, *batches: Tensor, backend: str = "torch") -> nn.Module:
    made = copy.deepcopy(model).requires_grad_(False)
    create(backend, kind, backend).quantize_(made, calibration(*batches))
    return made


def outlier() -> nn.Linear:
    """Return a layer with one output channel a thousand times larger than the others."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).eval()
    layer.weight.data[0] *= 1000
    return layer


def check_rounding(weight: Tensor, values: Tensor, scale: Tensor) -> None:
    """Check int8 values and scales of the output channels, which are the first dimension."""
    expected = weight.abs().flatten(1).amax(1) / 127
    assert scale.shape == (len(weight), *[1] * (weight.dim() - 1))
    torch.testing.assert_close(scale.flatten(), expected)
    assert values.dtype == torch.int8
    assert torch.equal(values.float(), torch.round(weight / scale))
    assert bool(((values * scale - weight).abs() <= scale / 2 * (1 + 1e-5)).all())


@pytest.mark.parametrize("make", [language_model, image_model, wide_model])
@pytest.mark.parametrize("kind", ["int8-weights", "int8-dynamic"])
def test_int8_weights_are_rounded_per_output_channel(make, kind):
    model = make()
    made = quantized(model, kind)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    assert weights
    for name, weight in weights.items():
        found = attrgetter(name)(made)
        check_rounding(weight.detach(), found.qdata, found.scale)
    assert all(torch.equal(attrgetter(name)(made), p) for name, p in model.named_parameters() if name not in weights)


@pytest.mark.parametrize(
    ("make", "x"), [(language_model, tokens(3)), (image_model, images(3)), (wide_model, images(3))]
)
def test_int8_weights_compute_as_their_floats(make, x):
    model = make()
    made = quantized(model, "int8-weights")
    plain = make()
    plain.load_state_dict(restored(stored(quantized(model, "int8-weights", backend="safetensors").state_dict())))
    with torch.no_grad():
        torch.testing.assert_close(made(x), plain(x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(made(x), model(x))


def test_dynamic_linear_layer_multiplies_integers():
    layer, x = nn.Linear(32, 8).eval(), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    made = quantized(nn.Sequential(layer), "int8-dynamic")
    weight = made[0].weight
    step = x.abs().amax(1, keepdim=True) / 127.5  # torchao uses -128 too
    rounded = torch.round(x / step).clamp(-128, 127)
    expected = rounded @ weight.qdata.float().T * step * weight.scale.flatten() + layer.bias
    torch.testing.assert_close(made(x), expected.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made(x), F.linear(x, weight.qdata * weight.scale, layer.bias), rtol=1e-5, atol=1e-6)


def test_weights_of_quantisation_aware_training_are_exact():
    """Its weights are already multiples, -127 to 127, of a scale for each channel."""
    levels = torch.randint(-127, 128, (8, 32), generator=torch.Generator().manual_seed(1))
    levels[:, 0] = 127
    layer = nn.Linear(32, 8)
    layer.weight.data = levels * torch.rand(8, 1, generator=torch.Generator().manual_seed(2))
    made = quantized(nn.Sequential(layer), "int8-weights")[0].weight
    assert torch.equal(made.qdata, levels.to(torch.int8))
    torch.testing.assert_close(made.qdata * made.scale, layer.weight.data, rtol=1e-6, atol=0)


def test_a_shared_weight_stays_one():
    embedding, head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
    head.weight = embedding.weight
    made = quantized(nn.Sequential(embedding, head).eval(), "int8-weights", backend="safetensors")
    assert made[0].weight is made[1].weight


def test_scales_per_channel_survive_an_outlier():
    layer = outlier()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    expected = layer(x).detach()[:, 1:]
    one_scale = layer.weight.abs().max() / 127
    broken = F.linear(x, torch.round(layer.weight / one_scale) * one_scale, layer.bias).detach()[:, 1:]
    made = quantized(nn.Sequential(layer), "int8-weights")(x)[:, 1:]
    assert (broken - expected).abs().max() > 0.5 * expected.abs().max()
    assert (made - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("kind", ["int8-weights", "int8-dynamic"])
def test_archives_hold_plain_tensors(tmp_path, kind):
    """torch.export would pickle the weights of torchao, and need this package to read them."""
    model, x = quantized(nn.Sequential(nn.Embedding(64, 16), nn.Linear(16, 4)).eval(), kind), torch.arange(3)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    with ZipFile(tmp_path / "model.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        weights = json.loads(archive.read(name))["config"]
    assert len(weights) > 4
    assert not any(weight["use_pickle"] for weight in weights.values())
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))


def test_archive_of_int8_weights_needs_no_torchao(tmp_path):
    layers = (nn.Embedding(64, 16), nn.Flatten(), nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 4, 3), nn.Linear(14, 4))
    model, x = quantized(nn.Sequential(*layers).eval(), "int8-weights"), torch.arange(3).view(3, 1)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    assert not [node.target for node in program.graph.nodes if "torchao" in str(node.target)]
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(x), model(x))


def test_multi_head_attention_of_torch_runs():
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = layer(x), quantized(layer, "int8-dynamic")(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_a_computed_weight_stays_in_float():
    layers = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)).eval()
    found, expected = quantized(layers, "int8-weights"), layers[0](torch.ones(1, 8))
    assert torch.equal(found[0](torch.ones(1, 8)), expected)
    assert prune_(layers, 0.5) == 0.5


def test_bfloat16_keeps_float32_outside():
    model, x = image_model(), images(4)
    made = quantized(model, "bf16", x)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        found, expected = made(x), model.bfloat16()(x.bfloat16()).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_int8_state_is_a_flat_file_of_tensors():
    model = image_model()
    made = stored(quantized(model, "int8-weights", backend="safetensors").state_dict())
    assert {made[f"{name}"].dtype for name, p in model.named_parameters() if p.dim() > 1} == {torch.int8}
    back = restored(made)
    assert back.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        within = made[name + ".scale"] / 2 * (1 + 1e-5) if value.dim() > 1 else 0
        assert bool(((back[name] - value).abs() <= within).all())


def test_state_without_int8_is_unchanged():
    state = image_model().state_dict() | {"steps": torch.ones(3, dtype=torch.int8), "norm.scale": torch.ones(2)}
    back = restored(stored(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match=r"--quantize: the model has no linear, convolutional or embedding layer"):
        quantized(nn.Sequential(nn.ReLU()), "int8-weights")


def test_a_missing_pair_names_the_possible_ones():
    with pytest.raises(UserError, match=r"'bf16' .* --to onnx .*int8-dynamic, int8-static, int8-weights"):
        create("onnx", "bf16", "onnx")
    assert kinds("torch") == ["bf16", "int8-dynamic", "int8-weights"]
    assert kinds("safetensors") == ["bf16", "int8-weights"]


# ONNX


def exported(model: nn.Module, x: Tensor, path: Path) -> Path:
    program = torch.onnx.export(
        model.eval(),
        (x,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["x"],
        verbose=False,
    )
    program.save(path)
    return path


def run(path: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    cases = {
        "text": (language_model(), tokens(2)),
        "tied": (Tied(), tokens(2)),
        "images": (image_model(), images(2)),
        "outlier": (nn.Sequential(outlier()), torch.randn(2, 64)),
    }
    return {name: exported(model, x, folder / f"{name}.onnx") for name, (model, x) in cases.items()}


def converted(files: dict[str, Path], name: str, kind: str, tmp_path: Path, *batches: Tensor) -> Path:
    create("onnx", kind, "onnx").quantize(files[name], tmp_path / "made.onnx", calibration(*batches))
    onnx.checker.check_model(tmp_path / "made.onnx", full_check=True)
    return tmp_path / "made.onnx"


def test_onnx_int8_weights_are_rounded_per_output_channel(files, tmp_path):
    before, after = arrays(files["images"]), arrays(converted(files, "images", "int8-weights", tmp_path))
    weights = {name: w for name, w in before.items() if w.ndim > 1 and w.size >= 256 and w.size > max(w.shape)}
    assert weights.keys() == {"1.0.weight", "3.weight"}
    for name, weight in weights.items():
        values, scale = (torch.tensor(after[f"{name}.{part}"]) for part in ("int8", "scale"))
        check_rounding(torch.tensor(weight), values, scale)
        assert name not in after


@pytest.mark.parametrize("kind", ["int8-weights", "int8-dynamic", "int8-static"])
@pytest.mark.parametrize(("name", "make"), [("text", language_model), ("tied", Tied)])
def test_tied_embedding_is_stored_once(files, tmp_path, name, make, kind):
    path = converted(files, name, kind, tmp_path, tokens(32))
    tables = [a for a in arrays(path).values() if a.ndim == 2 and set(a.shape) == {VOCABULARY, 64}]
    assert [table.dtype.itemsize for table in tables] == [1]
    expected, found = make()(tokens(4)).detach(), run(path, tokens(4))
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", ["int8-weights", "int8-dynamic"])
def test_onnx_scales_per_channel_survive_an_outlier(files, tmp_path, kind):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    expected = outlier()(x).detach()[:, 1:]
    found = run(converted(files, "outlier", kind, tmp_path), x)[:, 1:]
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_static_weights_are_rounded_per_output_channel(files, tmp_path):
    """The result has one scale, which the outlier decides; the weights have one for each channel."""
    after = arrays(converted(files, "outlier", "int8-static", tmp_path, torch.randn(16, 64)))
    name = next(name for name in after if name.endswith("weight_quantized"))
    values, scale, zero = (after[name.replace("quantized", part)] for part in ("quantized", "scale", "zero_point"))
    found = (values.astype(np.float32) - zero.astype(np.float32)[:, None]) * scale[:, None]
    weight = outlier().weight.detach().numpy()
    assert scale.shape == (64,)
    assert bool((np.abs(found - weight) <= scale[:, None] / 2 * (1 + 1e-3)).all())


@pytest.mark.parametrize("kind", ["int8-dynamic", "int8-static"])
def test_onnx_products_do_not_saturate(files, tmp_path, kind):
    """With int8 weights onnxruntime saturates on x86 without VNNI, and errors are ten times larger."""
    path = converted(files, "images", kind, tmp_path, *images(64).split(16))
    expected, found = image_model()(images(64)).detach(), run(path, images(64))
    assert (found - expected).abs().mean() < 0.02 * expected.abs().max()


def test_static_ranges_are_those_of_the_calibration(files, tmp_path):
    x = images(8)
    after = arrays(converted(files, "images", "int8-static", tmp_path, *x.split(4)))
    span = float(x.max() - x.min()) / 255
    assert float(after["x_scale"]) == pytest.approx(span, rel=1e-5)


def test_an_onnx_model_without_layers_is_refused(tmp_path):
    source = exported(nn.Sequential(nn.ReLU()), torch.randn(2, 4), tmp_path / "empty.onnx")
    for kind in kinds("onnx"):
        with pytest.raises(UserError, match=r"--quantize: the model has no "):
            create("onnx", kind, "onnx").quantize(source, tmp_path / "made.onnx", calibration(torch.randn(2, 4)))


# Pruning


def test_pruning_takes_the_smallest_weights_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -5.0], [3.0, -0.2]]))
        model[1].weight.copy_(torch.tensor([[-0.3, 4.0]]))
        model[0].bias.fill_(0.01)
    assert prune_(model, 0.5) == 0.5
    assert model[0].weight.tolist() == [[0, -5], [3, 0]]
    assert model[1].weight.tolist() == [[0, 4]]
    assert model[0].bias.tolist() == pytest.approx([0.01, 0.01])


def test_pruning_spares_norms_embeddings_and_their_shared_weight():
    model = language_model()
    before = copy.deepcopy(model.state_dict())
    embedding, head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
    head.weight = embedding.weight
    shared = nn.Sequential(embedding, head, nn.Linear(8, 8))
    prune_(model, 0.8)
    prune_(shared, 0.8)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.dim() > 1 and "blocks" in name}
    assert bool((embedding.weight != 0).all())


def test_a_weight_of_two_layers_is_pruned_once():
    first, second = nn.Linear(10, 10), nn.Linear(10, 10)
    second.weight = first.weight
    assert prune_(nn.Sequential(first, second), 0.3) == 0.3
    assert int((first.weight == 0).sum()) == 30


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.25, 25), (1.0, 100)])
def test_pruning_is_exact_with_equal_magnitudes(sparsity, zeros):
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight)
    assert prune_(layer, sparsity) == sparsity
    assert int((layer.weight == 0).sum()) == zeros


def test_earlier_zeros_count():
    layer = nn.Linear(10, 10)
    layer.weight.data[:4] = 0
    assert prune_(layer, 0.2) == 0.4


def test_pruning_needs_a_layer():
    with pytest.raises(UserError, match=r"--prune: the model has no linear or convolutional layer"):
        prune_(nn.LayerNorm(4), 0.5)
