import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvd_train.compute.calling import caller
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import ModelSection
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError

PACKAGE = "hvd_train.models.zoo"
DIGITS = DataSpec((1, 8, 8), 10, "classification")
CIFAR = DataSpec((3, 32, 32), 10, "classification")
TABLE = DataSpec((5,), 2, "regression")
TEXT = DataSpec((16,), 256, "language")
STEPS = DataSpec((7, 3), 2, "classification")
SPECTRA = DataSpec((2, 5, 7), 3, "classification")
WORDS = DataSpec((7,), 4, "classification", vocabularies={"input_ids": 11})
AGENT = DataSpec((4,), 3, "control")
TEAM = DataSpec((6,), 3, "control", agents=2, policy_inputs=4)
NUMBERS = DataSpec((4,), 2 * 3, "control")
"""Means and deviations of actions of three numbers."""
RATED = DataSpec((), 1, "regression", vocabularies={"user": 5, "item": 7})
RANKED = DataSpec((), 7, "ranking", vocabularies={"user": 5, "item": 7})

PAIRS = DataSpec((16,), 50, "seq2seq", vocabularies={"input_ids": 50, "decoder_input_ids": 50})

FITTING = {
    "actor_critic": (AGENT,),
    "embedding_bag": (WORDS,),
    "linear": (DIGITS, TABLE),
    "matrix_factorization": (RATED, RANKED),
    "mlp": (DIGITS, TABLE, AGENT),
    "soft_actor_critic": (NUMBERS,),
    "table": (AGENT,),
    "cnn": (DIGITS, CIFAR),
    "conformer": (STEPS, SPECTRA, WORDS),
    "conv1d": (STEPS, SPECTRA, WORDS),
    "gru": (STEPS, SPECTRA, WORDS),
    "per_agent": (TEAM,),
    "resnet": (DIGITS, CIFAR),
    "seq2seq": (PAIRS,),
    "transformer": (TEXT,),
    "two_tower": (RATED, RANKED),
    "vit": (DIGITS, CIFAR),
}
UNFITTING = {
    "actor_critic": (TABLE, TEXT),
    "embedding_bag": (TABLE, TEXT),
    "linear": (TEXT,),
    "matrix_factorization": (TABLE, TEXT),
    "mlp": (TEXT,),
    "soft_actor_critic": (TABLE, TEXT),
    "table": (TABLE, TEXT),
    "cnn": (TABLE, TEXT, DataSpec((1, 2, 8), 10, "classification")),
    "conformer": (TABLE, TEXT),
    "conv1d": (TABLE, TEXT, DataSpec((1, 800), 2, "classification")),
    "gru": (TABLE, TEXT),
    "per_agent": (TABLE, TEXT),
    "resnet": (TABLE, TEXT),
    "seq2seq": (TABLE, TEXT),
    "transformer": (DIGITS, TABLE),
    "two_tower": (TABLE, TEXT),
    "vit": (TABLE, TEXT, DataSpec((1, 3, 8), 10, "classification")),
}


def cases(table):
    return [
        pytest.param(name, spec, id=f"{name}-{spec.task}-{spec.input_shape}") for name in table for spec in table[name]
    ]


def create(name: str, spec: DataSpec, **options) -> nn.Module:
    torch.manual_seed(0)
    return plugins.create(PACKAGE, name, spec, **options)


def inputs(spec: DataSpec, samples: int = 3) -> Any:
    generator = torch.Generator().manual_seed(0)
    if "user" in spec.vocabularies:
        keys = ("user", "item") if spec.task == "regression" else ("user",)
        return {key: torch.randint(1, spec.vocabularies[key], (samples,), generator=generator) for key in keys}
    shape = (samples, *spec.input_shape)
    if spec.task == "language" or spec.vocabularies:
        return torch.randint(spec.vocabularies.get("input_ids", spec.outputs), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tested():
    elsewhere = {"huggingface"}  # test_transformers.py
    assert sorted({*FITTING, *elsewhere}) == plugins.names(PACKAGE)


@pytest.mark.parametrize(("name", "spec"), cases(FITTING))
def test_outputs_have_the_shape_of_the_contract_and_every_parameter_learns(name, spec):
    model = create(name, spec)
    outputs = model(inputs(spec), inputs(spec)) if spec.task == "seq2seq" else caller(model)(inputs(spec))
    positions = spec.input_shape if spec.task in {"language", "seq2seq"} else ()
    assert outputs.shape == (3, *positions, spec.outputs)
    trained = model(inputs(spec), *2 * [torch.rand(3, 3)]) if name == "soft_actor_critic" else outputs
    (trained + 1).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("name", "spec"), cases(UNFITTING))
def test_unfitting_data_is_refused_by_its_shape(name, spec):
    with pytest.raises(UserError) as refusal:
        create(name, spec)
    assert f"'{name}'" in str(refusal.value)
    assert f"not {spec.task} data of shape {spec.input_shape}" in str(refusal.value)


@pytest.mark.parametrize(("name", "spec"), cases(FITTING))
def test_no_tensor_has_two_names_in_a_state(name, spec):
    tensors = create(name, spec).state_dict().values()
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


def test_mlp_has_the_layers_asked_for():
    model = create("mlp", DIGITS, hidden=[7, 5], activation="tanh", dropout=0.5)
    assert [p.shape[0] for p in model.parameters() if p.dim() == 2] == [7, 5, 10]
    assert [type(m) for m in model][1:4] == [nn.Linear, nn.Tanh, nn.Dropout]
    assert model[3].p == 0.5
    assert parameters(create("mlp", TABLE, hidden=[])) == parameters(create("linear", TABLE)) == 12


def test_cnn_is_the_network_of_its_description():
    model, x = create("cnn", DIGITS, channels=[16]), inputs(DIGITS)
    kernel, scale, shift, weight, bias = model.parameters()
    normal = F.group_norm(F.conv2d(x, kernel, padding=1), 8, scale, shift)
    expected = F.linear(F.max_pool2d(F.relu(normal), 2).flatten(1), weight, bias)
    torch.testing.assert_close(model(x), expected)


def test_cnn_judges_a_sample_by_itself():
    model = create("cnn", DIGITS)
    x = inputs(DIGITS)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_resnet20_has_the_parameters_of_its_paper():
    assert parameters(create("resnet", CIFAR)) == 269_722
    assert parameters(create("resnet", CIFAR, depth=110)) == pytest.approx(1.7e6, rel=0.02)


def test_resnet_shortcuts_carry_what_its_blocks_do_not_change():
    block = create("resnet", CIFAR)[2][0]
    nn.init.zeros_(block.second[1].weight)
    x = torch.rand(2, 16, 6, 6)
    outputs = block(x)
    assert torch.equal(outputs[:, :16], x[:, :, ::2, ::2])
    assert torch.equal(outputs[:, 16:], torch.zeros(2, 16, 3, 3))


def test_resnet_norm_is_a_choice():
    grouped = create("resnet", DIGITS, norm="group")
    assert not list(grouped.buffers())
    assert list(create("resnet", DIGITS).buffers())
    assert parameters(grouped) == parameters(create("resnet", DIGITS))


def test_resnet_starts_with_kaiming_weights():
    weight = create("resnet", CIFAR, width=64)[1][0].second[0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


def test_transformer_never_looks_ahead():
    model = create("transformer", TEXT).eval()
    tokens = inputs(TEXT, 1)
    changed = tokens.clone()
    changed[0, 9] = (tokens[0, 9] + 1) % 256
    same = (model(tokens) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 9 + [False] * 7


def test_transformer_knows_positions():
    model = create("transformer", TEXT).eval()
    outputs = model(torch.zeros(1, 16, dtype=torch.int64))
    assert not torch.allclose(outputs[0, 0], outputs[0, 1])


def test_transformer_ties_its_embedding():
    tied, untied = create("transformer", TEXT), create("transformer", TEXT, tie=False)
    assert parameters(untied) - parameters(tied) == 256 * 128
    assert tied.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("tie", [True, False])
def test_transformer_adds_its_blocks_to_the_embeddings(tie):
    model, tokens = create("transformer", TEXT, tie=tie), inputs(TEXT)
    for block in model.blocks[:-1]:
        nn.init.zeros_(block.attention[1].merge.weight)
        nn.init.zeros_(block.feed[1][-1].weight)
    embedded = F.layer_norm(model.tokens.weight[tokens] + model.positions.weight, (128,))
    vocabulary = model.tokens.weight if tie else model.head.weight
    torch.testing.assert_close(model(tokens), embedded @ vocabulary.T)


def test_transformer_drops_only_in_training():
    model = create("transformer", TEXT, dropout=0.5)
    tokens = inputs(TEXT, 1)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


LENGTHS = (1, 4, 7, 5)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("spec", [STEPS, SPECTRA, WORDS], ids=["steps", "spectra", "words"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv1d", {}),
        ("gru", {}),
        ("gru", {"bidirectional": True, "layers": 2}),
        ("conformer", {}),
        ("conformer", {"join": 2}),
    ],
)
def test_padding_changes_no_sequence(name, options, spec, per_step):
    model = create(name, spec, per_step=per_step, **options).eval()
    x = inputs(spec, len(LENGTHS))
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    outputs = model(x, mask)
    for i, length in enumerate(LENGTHS):
        alone = model(x[i : i + 1, ..., :length] if spec is SPECTRA else x[i : i + 1, :length])
        if per_step:
            steps = int(alone["lengths"])
            assert steps == int(outputs["lengths"][i])
            torch.testing.assert_close(outputs["logits"][i, :steps], alone["logits"][0])
            torch.testing.assert_close(alone["logits"].exp().sum(-1), torch.ones(1, steps))
        else:
            torch.testing.assert_close(outputs[i : i + 1], alone)


@pytest.mark.parametrize("name", ["conv1d", "gru", "conformer"])
def test_padding_that_is_no_number_changes_nothing_and_gets_no_gradient(name):
    model = create(name, STEPS).eval()
    x, mask = inputs(STEPS), torch.arange(7) < torch.tensor([[7], [3], [5]])
    spoilt = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
    outputs = model(spoilt, mask)
    torch.testing.assert_close(outputs, model(x, mask))
    outputs.sum().backward()
    assert torch.equal(spoilt.grad.abs().sum(-1) > 0, mask)


def test_a_gru_of_both_directions_is_that_of_torch():
    model = create("gru", STEPS, width=4, bidirectional=True)
    (layer,), x = model.layers, inputs(STEPS)
    whole = nn.GRU(3, 4, batch_first=True, bidirectional=True)
    directions = {"": layer.forwards, "_reverse": layer.backwards}
    whole.load_state_dict({f"{k}{end}": v for end, one in directions.items() for k, v in one.state_dict().items()})
    torch.testing.assert_close(model(x), model.head.linear(whole(x)[0].mean(1)))


def test_conv1d_is_the_network_of_its_description():
    model, x = create("conv1d", STEPS, channels=[4], kernel=3), inputs(STEPS)
    kernel, bias, scale, shift, weight, offset = model.parameters()
    normal = F.layer_norm(F.conv1d(x.mT, kernel, bias, padding=1).mT, (4,), scale, shift)
    pooled = F.max_pool1d(F.relu(normal).mT, 2, ceil_mode=True).mean(-1)
    torch.testing.assert_close(model(x), F.linear(pooled, weight, offset))


def test_a_conformer_knows_the_order_of_steps_and_not_where_they_begin():
    model = create("conformer", STEPS, layers=1, kernel=1).eval()
    attention = model.blocks[0].attention
    x = torch.randn(1, 6, 64)
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert not torch.allclose(attention(x, mask)[0, 0], attention(x.flip(1), mask)[0, -1], atol=1e-4)
    moved = torch.cat([torch.zeros(1, 3, 64), x], 1)
    later = torch.arange(9)[None] >= 3
    torch.testing.assert_close(attention(moved, later)[:, 3:], attention(x, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vit_sees_patches_and_where_they_are(pool):
    model = create("vit", DIGITS, pool=pool).eval()
    x = inputs(DIGITS, 1)
    left, right = x[..., :4], x[..., 4:]
    assert not torch.allclose(model(x), model(torch.cat([right, left], -1)))
    nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(x), model(torch.cat([right, left], -1)))


def test_vit_embeds_a_patch_by_all_its_pixels():
    model, x = create("vit", CIFAR, patch=16, pool="mean"), inputs(CIFAR, 2)
    patches = x.unflatten(3, (2, 16)).unflatten(2, (2, 16)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    kernel, bias = model.patches.weight.flatten(1), model.patches.bias
    torch.testing.assert_close(model._embedded(x), F.linear(patches, kernel, bias) + model.positions.weight)


def test_the_layers_of_vit_are_its_forward_pass():
    model, x = create("vit", DIGITS), inputs(DIGITS)
    outputs = x
    for layer in model.pipeline_layers():
        outputs = layer.run(outputs)
    assert torch.equal(outputs, model(x))
    assert {path for layer in model.pipeline_layers() for path in layer.paths} >= {"patches", "positions", "head"}


@pytest.mark.parametrize(
    ("name", "spec", "options", "words"),
    [
        ("resnet", CIFAR, {"depth": 21}, ["model.depth", "21", "6n + 2"]),
        ("resnet", CIFAR, {"depth": 2}, ["model.depth", "2", "6n + 2"]),
        ("transformer", TEXT, {"width": 10, "heads": 4}, ["model.width", "10", "multiple of heads, 4"]),
        ("vit", DIGITS, {"width": 10, "heads": 4}, ["model.width", "10", "multiple of heads, 4"]),
        ("vit", DIGITS, {"patch": 3}, ["model.patch", "3", "divisor of both sides of the images, 8 x 8"]),
        ("conformer", STEPS, {"width": 12, "heads": 4}, ["model.width", "12", "multiple of twice the heads, 8"]),
        ("conformer", STEPS, {"kernel": 4}, ["model.kernel", "4", "an odd number"]),
        ("conv1d", STEPS, {"kernel": 4}, ["model.kernel", "4", "an odd number"]),
    ],
)
def test_impossible_sizes_are_refused(name, spec, options, words):
    with pytest.raises(UserError) as refusal:
        create(name, spec, **options)
    assert all(word in str(refusal.value) for word in words)


def own(target: str, **fields) -> ModelSection:
    return read_section(ModelSection, Document({"target": target, **fields}, "test"))


def test_a_target_takes_options_beside_it_and_in_args():
    for section in (
        own("torch.nn:Linear", in_features=5, out_features=2),
        own("torch.nn:Linear", in_features=5, args={"out_features": 2}),
    ):
        made = section.create(TABLE, expected=nn.Module)
        assert (made.in_features, made.out_features) == (5, 2)


def test_a_target_that_is_like_a_model_of_ddl_receives_the_spec():
    section = own("hvd_train.models.zoo.mlp:create", hidden=[7])
    assert next(section.create(TABLE, expected=nn.Module).parameters()).shape == (7, 5)


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        ("builtins:dict", {}, ["returned a value of type dict", "torch.nn.Module"]),
        ("torch.nn:Linear", {"in_featurs": 5}, ["'in_features'", "parameters are (in_features: int"]),
    ],
)
def test_a_target_must_make_a_module(target, args, words):
    with pytest.raises(UserError) as refusal:
        own(target, args=args).create(TABLE, expected=nn.Module)
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize("family", ["models", "data", "partitions"])
def test_options_are_read_from_the_source_and_each_says_what_it_changes(family):
    package = plugins.FAMILIES[family]
    for name in plugins.names(package):
        assert plugins.summary(package, name).endswith(".")
        assert all(field.description for field in plugins.options(package, name).model_fields.values()), name
