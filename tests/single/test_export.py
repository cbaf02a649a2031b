"""An export is read back, and what it computes is compared with the model that was trained."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.rank.logs import Output
from hvd_train.rank.task import TaskContext
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.exporting import card, latency
from hvd_train.trained.exporting.binding import Binding
from hvd_train.trained.exporting.format import package
from hvd_train.trained.exporting.formats.torch import Torch
from hvd_train.trained.exporting.inputs import Inputs
from hvd_train.trained.exporting.judge import largest_difference
from hvd_train.trained.exporting.latency import Latency
from hvd_train.trained.exporting.program import axes, source_of
from hvd_train.trained.exporting.verdict import Metric, Row, judge
from hvd_train.trained.tasks import attack, explain
from hvd_train.trained.tasks.export import create
from tests.bodies import trained
from tests.engines import threads

INF, NAN = float("inf"), float("nan")
ACCURACY, LOSS = Metric("accuracy", True), Metric("loss", False)


def export(run: Path, folder: Path, comm: Communicator | None = None, **options: Any) -> dict[str, Any]:
    """Export the run to `folder`, with latencies of little worth, and return the result of the task."""
    return create(seconds=1e-9, **options).run(context(run, folder, comm))


def context(run: Path, folder: Path, comm: Communicator | None = None) -> TaskContext:
    """Return what a task is given that writes in `folder`."""
    folder.mkdir(exist_ok=True)
    found = find_run(run)
    return TaskContext(found.config, comm or single(), found.checkpoint, folder, Output())


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"))


MODELS: dict[str, tuple[Callable[..., Path], Any]] = {
    "mlp": (trained.digits, "mlp"),
    "linear": (trained.digits, "linear"),
    "cnn": (trained.images, {"name": "cnn", "channels": [8]}),
    "resnet": (trained.images, {"name": "resnet", "depth": 8, "width": 4}),
    "transformer": (trained.text, {"name": "transformer", "layers": 1, "width": 16, "heads": 2}),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnx_of_each_model_equals_torch(name: str, tmp_path: Path) -> None:
    train, model = MODELS[name]
    quick = {"optimizer": {"name": "SGD", "lr": 0.01}, "train": {"steps": 4, "eval_every": 4}}
    result = export(train(tmp_path, model=model, **quick), tmp_path / "out", to="onnx")
    original, onnx = result["rows"]
    assert onnx["difference"] <= 1e-5
    assert onnx["agreement"] == 1
    assert onnx["metrics"]["accuracy"] == original["metrics"]["accuracy"]
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert onnx["bytes"] == len(content)
    assert b"site-packages" not in content
    assert [i["shape"][0] for i in (*result["inputs"], *result["outputs"])] == ["batch", "batch"]


def test_program_of_torch_needs_no_code_of_the_model_and_holds_no_pickle(digits: Path, tmp_path: Path) -> None:
    result = export(digits, tmp_path / "out", to="torch")
    assert result["rows"][1]["difference"] == 0
    assert pickled(tmp_path / "out" / "model.pt2") == []
    scope: dict[str, Any] = {"input": torch.zeros(7, 1, 8, 8)}
    exec(result["loading"].replace("model.pt2", str(tmp_path / "out" / "model.pt2")), scope)
    assert scope["outputs"].shape == (7, 10)


def pickled(archive: Path) -> list[str]:
    """Return the members of an archive that are zip files, as of torch.save, or that the index calls pickled."""
    with zipfile.ZipFile(archive) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    indices = [content for name, content in contents.items() if name.endswith("_config.json")]
    assert len(indices) == 2
    marked = [str(content) for content in indices if b'"use_pickle": true' in content]
    return [*marked, *(name for name, content in contents.items() if content.startswith(b"PK"))]


@pytest.mark.parametrize("quantize", [None, "int8-weights", "bf16"])
def test_weights_are_loaded_without_ddl_as_the_card_says(quantize: str | None, digits: Path, tmp_path: Path) -> None:
    result = export(digits, tmp_path / "out", to="safetensors", quantize=quantize, max_loss=50.0)
    assert result["kept"] == (quantize or "fp32")
    assert result["rows"][1]["difference"] == 0
    scope: dict[str, Any] = {"input": torch.randn(50, 1, 8, 8)}
    exec(result["loading"].replace("model.safetensors", str(tmp_path / "out" / "model.safetensors")), scope)
    original = load_model(find_run(digits)).module(scope["input"])
    difference = float((scope["outputs"] - original).abs().max())
    assert difference == 0 if quantize is None else 0 < difference < 0.05 * float(original.abs().max())


@pytest.mark.parametrize(("to", "quantize"), [("torch", "int8-weights"), ("onnx", "int8-dynamic")])
def test_quantized_export_is_smaller_and_judged_beside_the_plain_one(to: str, quantize: str, tmp_path: Path) -> None:
    wide = trained.digits(tmp_path, model={"name": "mlp", "hidden": [1024]}, train={"steps": 20, "eval_every": 20})
    result = export(wide, tmp_path / "out", to=to, quantize=quantize, max_loss=3.0)
    _, plain, quantized = result["rows"]
    assert [row["label"] for row in result["rows"]] == ["original", "fp32", quantize]
    assert plain["difference"] <= 1e-5 < quantized["difference"]
    assert quantized["agreement"] > 0.97
    assert quantized["bytes"] < 0.6 * plain["bytes"]
    assert result["verdict"].startswith(f"against fp32, {quantize} is ")
    (file,) = (tmp_path / "out").iterdir()
    assert file.stat().st_size == quantized["bytes"]
    assert b"site-packages" not in file.read_bytes()
    assert to != "torch" or pickled(file) == []


SYNC = {
    "sharded": (2, {"sync": {"shard_optimizer": "auto"}}),
    "local_sgd": (2, {"sync": {"strategy": "local_sgd", "period": 3}}),
    "federated": (3, {"sync": {"strategy": "federated", "fraction": 0.7}}),
    "pipeline": (2, {"parallel": {"pipeline": 2}}),
    "ema": (1, {"train": {"steps": 6, "ema": 0.9}}),
    "fp64": (1, {"train": {"steps": 6, "precision": "fp64"}}),
    "bf16": (1, {"train": {"steps": 6, "precision": "bf16"}}),
}
"""Runs by what is special about their checkpoints: ranks, and sections of the configuration."""


@pytest.mark.parametrize("name", SYNC)
def test_checkpoint_of_every_kind_of_run_is_exported_explained_and_attacked(name: str, tmp_path: Path) -> None:
    ranks, sections = SYNC[name]
    values = {
        "model": {"name": "mlp", "hidden": [32]},
        "data": {"name": "digits", "batch_size": 64},
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "train": {"steps": 6},
        **sections,
    }
    resolve(Document(values, "test"))  # threads cannot parse plugins

    def run(comm: Communicator) -> Path:
        folder = tmp_path / str(comm.rank)
        folder.mkdir()
        return trained.train(folder, values, comm)

    folder, *_ = threads.run(ranks, run)
    result = export(folder, tmp_path / "out", to="safetensors")
    original, exported = result["rows"]
    assert exported["difference"] <= {"fp64": 1e-5, "bf16": 0.2}.get(name, 0.0)
    assert exported["agreement"] > 0.95
    assert result["samples"] == 359
    assert original["metrics"].keys() == exported["metrics"].keys() == {"loss", "accuracy"}
    found = explain.create(samples=3).run(context(folder, tmp_path / "explained"))
    assert max(sample["completeness_error"] for sample in found["samples"]) <= 0.01
    found = attack.create(methods=["fgsm"], epsilons=[0.0, 0.1]).run(context(folder, tmp_path / "attacked"))
    clean, attacked = found["attacks"]["accuracy"]["fgsm"]
    assert clean == pytest.approx(original["metrics"]["accuracy"], abs=1 / 359)
    assert attacked < clean


def test_metrics_are_those_of_one_rank_on_any_number(digits: Path, tmp_path: Path) -> None:
    def run(comm: Communicator) -> dict[str, Any]:
        return export(digits, tmp_path / f"{comm.size}", comm, to="safetensors")

    (one,), (several, *others) = threads.run(1, run), threads.run(3, run)
    assert others == [{}, {}]
    assert several["samples"] == one["samples"]
    for a, b in zip(one["rows"], several["rows"], strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-6)
        assert (a["difference"], a["agreement"]) == (b["difference"], b["agreement"])


def test_file_with_other_weights_is_found_out(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Torch.write

    def spoil(self: Torch, source: Any, folder: Path) -> Any:
        with torch.no_grad():
            next(source.module.parameters()).zero_()
        return write(self, source, folder)

    monkeypatch.setattr(Torch, "write", spoil)
    result = export(digits, tmp_path / "out", to="torch", max_loss=5.0)
    original, spoiled = result["rows"]
    assert spoiled["difference"] > 0.1
    assert spoiled["agreement"] < 0.5
    assert spoiled["metrics"]["accuracy"] < original["metrics"]["accuracy"] - 0.5
    assert result["kept"] is None
    assert "more than --max-loss 5: nothing is written" in result["verdict"]
    assert list((tmp_path / "out").iterdir()) == []


class Named(nn.Module):
    """Takes two tensors by name, and returns a dict with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.left(a), "logits": self.left(a) + self.right(b)}


class Pair(Named):
    """Takes a tuple, and returns a tuple without a loss."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return super().forward(a, b)["logits"]


class OwnLoss(Named):
    """Returns its loss if it gets targets."""

    def forward(self, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Any:
        found = super().forward(a, b)["logits"]
        return {"logits": found, **({} if labels is None else {"loss": nn.functional.cross_entropy(found, labels)})}


class Rows:
    """Samples that are dicts or tuples, in memory."""

    def __init__(self, number: int, *, named: bool) -> None:
        draw = torch.Generator().manual_seed(number)
        self.a, self.b = torch.randn(number, 3, generator=draw), torch.randn(number, 4, generator=draw)
        self.y, self.named = (self.a.sum(1) > 0).long(), named
        self.labels = self.y

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Tensor) -> Any:
        a, b, y = self.a[indices], self.b[indices], self.y[indices]
        return {"a": a, "b": b, "labels": y} if self.named else (a, b, y)


def named() -> Dataset:
    return Dataset(Rows(60, named=True), Rows(40, named=True), DataSpec((), 0, "other"))


def pairs() -> Dataset:
    return Dataset(Rows(60, named=False), Rows(40, named=False), DataSpec((), 0, "other"))


HERE = "tests.single.test_export"


@pytest.mark.parametrize(
    ("model", "data", "train", "inputs", "outputs", "metrics"),
    [
        ("Named", "named", {}, ["a", "b"], ["hidden", "logits"], {"loss", "accuracy"}),
        ("Pair", "pairs", {}, ["input_0", "input_1"], ["output"], {"loss", "accuracy"}),
        ("OwnLoss", "named", {"loss": "model"}, ["a", "b"], ["logits"], {"accuracy"}),
    ],
    ids=["named", "pairs", "own-loss"],
)
def test_models_of_the_user_with_several_inputs(
    model: str, data: str, train: Any, inputs: list[str], outputs: list[str], metrics: set[str], tmp_path: Path
) -> None:
    run = trained.train(
        tmp_path,
        {
            "model": {"target": f"{HERE}:{model}"},
            "data": {"target": f"{HERE}:{data}", "batch_size": 8},
            "optimizer": {"name": "SGD", "lr": 0.1},
            "train": {"steps": 3, **({"loss": "cross_entropy"} | train)},
        },
    )
    result = export(run, tmp_path / "out", to="torch")
    assert [i["name"] for i in result["inputs"]] == inputs
    assert [(i["name"], i["shape"]) for i in result["outputs"]] == [(name, ["batch", 2]) for name in outputs]
    assert result["rows"][1]["metrics"].keys() == metrics
    assert (result["rows"][1]["difference"], result["rows"][1]["agreement"]) == (0, 1)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 6) * torch.ones(2, 1) if len(x) == 2 else x.reshape(len(x), 6)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Branches(), r"depend on the values of a tensor .*, in module 'inner', test_export.py, line \d+: if x.sum\(\)"),
        (Fixed(), "its code fixes the number of samples in a batch"),
    ],
    ids=["values", "batch"],
)
def test_model_without_a_program_is_refused_in_one_sentence(model: nn.Module, said: str) -> None:
    split = TensorSplit(torch.randn(9, 6), torch.zeros(9).long(), torch.zeros(9).long())
    source = source_of(model, Inputs(Dataset(split, split, DataSpec((6,), 6, "classification")), None), language=False)
    with pytest.raises(UserError, match=rf"^--to onnx: torch.export cannot export the model: .*{said}") as caught:
        source.trace("onnx")
    assert "\n" not in str(caught.value)


def test_data_without_held_out_samples_cannot_judge() -> None:
    split = TensorSplit(torch.randn(9, 6), torch.zeros(9).long(), torch.zeros(9).long())
    empty = TensorSplit(split.x[:0], split.y[:0], split.labels[:0])
    with pytest.raises(UserError, match="no held-out samples to judge an export with"):
        Inputs(Dataset(split, empty, DataSpec((6,), 6, "classification")), None)


def test_impossible_pair_is_refused_before_data_is_read(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--quantize: 'int8-static' is not made for --to torch \(choices there: bf16, "
    ):
        export(digits, tmp_path / "out", to="torch", quantize="int8-static")


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(
        UserError, match=r"--to executorch: absent is not installed; .* pip install -e '.\[executorch\]'"
    ):
        package("absent.runtime", "executorch", "executorch")


class Point(NamedTuple):
    left: Tensor
    right: dict[str, Tensor]


class Nested(nn.Module):
    def forward(self, point: Any) -> Any:
        return Point(point.left + 1, {"x.y": point.right["z"] * 2}), "text"


def test_binding_keeps_the_nesting_of_inputs_and_outputs() -> None:
    def inputs(number: int) -> Any:
        return Point(torch.ones(number, 2, dtype=torch.float64), {"z": torch.arange(number), "n": 3})

    binding = Binding(Nested(), inputs(2))
    assert binding.inputs == ("input_0", "input_1_z")
    assert binding.outputs == ("output_0_0", "output_0_1_x_y")
    tensors = binding.tensors(inputs(4))
    assert [x.dtype for x in tensors] == [torch.float32, torch.int64]
    flat = binding.flat(binding.call(Nested(), tensors))
    found, text = binding.nested(flat)
    assert (type(found).__name__, text) == ("Point", "text")
    assert torch.equal(found.right["x.y"], torch.arange(4) * 2)
    with pytest.raises(UserError, match="the model returns str of 4, and an exported program returns tensors"):
        Binding(type("Silent", (nn.Module,), {"forward": lambda self, x: "text"})(), torch.ones(2))


def test_axes_are_the_batch_what_differs_and_the_length_of_a_text() -> None:
    def batch(samples: int, length: int) -> tuple[Tensor, ...]:
        return torch.zeros(samples, length, 5), torch.zeros(3), torch.zeros(())

    assert axes([batch(2, 7), batch(3, 7), batch(1, 4)], language=False) == ({0: "batch", 1: "size_1"}, {}, {})
    assert axes([batch(2, 7), batch(3, 7), batch(1, 7)], language=True)[0] == {0: "batch", 1: "length"}


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([INF, -INF, NAN], [INF, -INF, NAN], 0.0),
        ([1.0], [NAN], INF),
        ([INF], [-INF], INF),
        ([], [], 0.0),
    ],
    ids=["finite", "equal", "nan", "infinite", "empty"],
)
def test_largest_difference(one: list[float], other: list[float], difference: float) -> None:
    assert largest_difference(torch.tensor(one), torch.tensor(other)) == difference


def test_percentiles_are_measured_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (latency.percentile(values, 0.5), latency.percentile(values, 0.95)) == (50, 95)
    assert (latency.percentile([3.0, 1.0], 0.5), latency.percentile([3.0, 1.0], 0.95)) == (1, 3)


def test_calls_take_turns_and_are_warmed_up() -> None:
    order: list[str] = []
    times = latency.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0)
    warm = latency.WARM_UP
    assert order == ["a"] * warm + ["b"] * warm + ["a", "b"] * latency.FEWEST
    assert {label: len(of_one) for label, of_one in times.items()} == {"a": latency.FEWEST, "b": latency.FEWEST}


def row(label: str, size: int, value: float, *p50: float) -> Row:
    times = [Latency(batch, 1, time, time) for batch, time in enumerate(p50, 1)]
    return Row(label, size, {"accuracy": value, "loss": value}, times, None if label == "original" else 0.25)


ORIGINAL = row("original", 0, 0.9, 2.0, 2.0)


@pytest.mark.parametrize(
    ("exports", "metric", "max_loss", "kept", "text"),
    [
        (
            [row("fp32", 100, 0.9, 1.0, 1.0)], ACCURACY, None, "fp32",
            "against the original model, fp32 is faster here (2.0x) and equal in accuracy: kept fp32",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 25, 0.896, 1.3, 1.3)], ACCURACY, 0.5, "int8",
            "against fp32, int8 is 4.0x smaller, slower here (1.3x) and 0.4 points worse in accuracy: kept int8",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 25, 0.896, 1.3, 1.3)], ACCURACY, None, "fp32",
            "against fp32, int8 is 4.0x smaller, slower here (1.3x) and 0.4 points worse in accuracy: kept fp32",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 25, 0.896, 1.0, 1.0)], ACCURACY, None, "int8",
            "against fp32, int8 is 4.0x smaller, not faster here (1.00x) and 0.4 points worse in accuracy: kept int8",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 98, 0.896, 1.3, 1.3)], ACCURACY, 0.5, "fp32",
            "against fp32, int8 is not smaller (0.98x), slower here (1.3x) and 0.4 points worse in accuracy: kept fp32",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 220, 0.9, 1.0, 1.0)], ACCURACY, 0.5, "fp32",
            "against fp32, int8 is 2.2x larger, not faster here (1.00x) and equal in accuracy: kept fp32",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 120, 0.91, 2.0, 0.5)], ACCURACY, None, "int8",
            "against fp32, int8 is 1.2x larger, not faster here (1.00x) and 1 points better in accuracy: kept int8",
        ),
        (
            [row("fp32", 100, 0.9, 1.0, 1.0), row("int8", 25, 0.894, 0.5, 0.5)], ACCURACY, 0.5, None,
            "against fp32, int8 is 4.0x smaller, faster here (2.0x) and 0.6 points worse in accuracy, which is more than "
            "--max-loss 0.5: nothing is written",
        ),
        (
            [row("fp32", 100, 0.909, 2.0, 2.0)], LOSS, None, "fp32",
            "against the original model, fp32 is not faster here (1.00x) and 1 points worse in loss: kept fp32",
        ),
        ([row("fp32", 100, NAN, 2.0, 2.0)], LOSS, 0.5, None, None),
        (
            [row("fp32", 100, 0.5, 2.0, 2.0)], None, None, "fp32",
            "against the original model, fp32 is not faster here (1.00x) and different by at most 2.5e-01: kept fp32",
        ),
    ],
    ids=[
        "plain", "smaller", "slower-and-worse", "smaller-and-worse", "useless", "equal", "larger", "worse", "loss", "nan",
        "no-metric",
    ],
)  # fmt: skip
def test_verdict(
    exports: list[Row], metric: Metric | None, max_loss: float | None, kept: Any, text: str | None
) -> None:
    found = judge([ORIGINAL, *exports], metric, max_loss)
    assert found.kept == kept
    assert text is None or found.text == text


def test_card_says_what_is_in_the_folder(digits: Path, tmp_path: Path) -> None:
    result = export(digits, tmp_path / "out", to="safetensors")
    card.write(tmp_path / "out", find_run(digits), result, "CC0-1.0")
    found = json.loads((tmp_path / "out" / "card.json").read_text())
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert found["files"] == {
        "model.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }
    assert (found["licence"], found["training"]["strategy"], found["training"]["seed"]) == ("CC0-1.0", "allreduce", 0)
    assert found["model"]["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert {"torch", "python"} <= found["training"]["versions"].keys()
    text = (tmp_path / "out" / "card.md").read_text()
    assert all(line in text for line in ("- licence: CC0-1.0", "| input | float32 | (batch, 1, 8, 8) |"))
    assert str(result["verdict"]) in text
