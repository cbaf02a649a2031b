"""Sequences of unequal length: padding adds nothing to any batch, model, metric or prediction."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset
from hvd_train.data.load import load as load_section
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.rank.build import build
from hvd_train.rank.node import on_node
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.exporting.inputs import Inputs
from hvd_train.trained.exporting.program import source_of
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.training import checkpoint
from tests.bodies import trained, training
from tests.engines import threads

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arrays(**other: Any) -> dict[str, Any]:
    """Return sequences of two features: class 1 has larger ones than class 0."""
    draw = np.random.default_rng(0)
    y = np.arange(len(LENGTHS)) % 2
    x = draw.normal(size=(sum(LENGTHS), 2)) + np.repeat(y, LENGTHS)[:, None] * 3
    return {"x": x.astype(np.float32), "y": y, "lengths": np.array(LENGTHS), **other}


def write(path: str = "s.npz", save: Any = np.savez, **other: Any) -> str:
    save(path, **arrays(**other))
    return path


def section(**fields: Any) -> DataSection:
    return read_section(
        DataSection, Document({"name": "sequences", "path": "s.npz", "test_fraction": 0.25, **fields}, "test")
    )


def load(node: Node = ALONE, fitted: Any = None, **fields: Any) -> Dataset:
    return load_section(section(**fields), node=node, fitted=fitted)


def own(index: int) -> Tensor:
    """Return the steps of sequence `index` of the file."""
    start = sum(LENGTHS[:index])
    return torch.from_numpy(arrays()["x"][start : start + LENGTHS[index]])


def safetensors(path: str, **named: Any) -> None:
    save_file(named, path)


@pytest.mark.parametrize(
    ("path", "save"), [("s.npz", np.savez), ("s.npz", np.savez_compressed), ("s.safetensors", safetensors)]
)
def test_a_batch_has_the_steps_of_the_file_and_zeros_after_them(path: str, save: Any) -> None:
    data = load(path=write(path, save))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    assert (len(data.train), len(data.test)) == (9, 3)
    assert data.spec.input_shape == (9, 2)
    batch = pickle.loads(pickle.dumps(data.train)).batch(torch.tensor([4, 0, 7]))
    for row, index in enumerate(order[i] for i in (4, 0, 7)):
        steps = own(index)
        assert torch.equal(batch["x"][row, : len(steps)], steps)
        assert not batch["x"][row, len(steps) :].any()
        assert batch["mask"][row].tolist() == [at < len(steps) for at in range(batch["x"].shape[1])]
        assert batch["y"][row] == index % 2
    assert data.train.labels.tolist() == [i % 2 for i in order[:9]]
    assert data.train.lengths.tolist() == [LENGTHS[i] for i in order[:9]]


def test_features_are_standardised_by_the_training_steps_alone_and_by_those_of_the_run(tmp_path: Path) -> None:
    write()
    plain, scaled = load().train, load(standardise=True)
    steps = torch.cat([plain.batch(torch.tensor([i]))["x"][0] for i in range(len(plain))]).double()
    expected = {"mean": steps.mean(0), "deviation": steps.std(0, correction=0)}
    found = scaled.preprocessing["sequences"]
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), values, rtol=1e-6, atol=0)
    batch, before = scaled.test.batch(torch.arange(3)), load().test.batch(torch.arange(3))
    by_hand = (before["x"] - expected["mean"]) / expected["deviation"] * before["mask"][..., None]
    torch.testing.assert_close(batch["x"], by_hand.float())
    write("other.npz", lengths=np.array([sum(LENGTHS)]), y=np.array([1]))
    fitted = {"task": "classification", "input_shape": [9, 2], "outputs": 2, **scaled.preprocessing}
    again = load(path="other.npz", test_path="other.npz", fitted=fitted)
    assert again.spec.outputs == 2
    torch.testing.assert_close(
        again.test.batch(torch.tensor([0]))["x"][0].mean(0),
        (torch.from_numpy(arrays()["x"]).mean(0) - expected["mean"].float()) / expected["deviation"].float(),
    )


def test_a_constant_feature_and_targets_that_are_numbers() -> None:
    write(x=np.ones((sum(LENGTHS), 1)), y=np.linspace(0, 1, 12), groups=np.arange(12) // 3)
    data = load(standardise=True, groups="groups")
    assert not data.train.batch(torch.arange(9))["x"].any()
    assert (data.spec.task, data.spec.outputs) == ("regression", 1)
    assert data.train.batch(torch.tensor([0]))["y"].shape == (1, 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.train.groups, order[:9] // 3)
    assert torch.equal(data.test.groups, order[9:] // 3)


def test_the_ranks_of_a_host_have_one_copy_and_equal_samples() -> None:
    write(save=np.savez_compressed)

    def check(comm: Communicator) -> list[Any]:
        data = on_node(comm, lambda node: load(node, standardise=True))
        return [data.train.steps.array.file.path, data.preprocessing, data.train.batch(torch.arange(9))["x"].tolist()]

    one, two = threads.run(2, check)
    assert one[1:] == two[1:]
    assert one[0].startswith("/proc/")


def test_a_transform_changes_steps_and_no_padding() -> None:
    write()
    noisy = load(transforms=[{"name": "noise", "std": 0.5}], bucket=2)
    batch, plain = noisy.train.at(0).batch(torch.arange(9)), load().train.batch(torch.arange(9))
    assert torch.equal(batch["mask"], plain["mask"])
    assert torch.equal(batch["x"] != plain["x"], plain["mask"][..., None].expand_as(plain["x"]))
    assert noisy.train.lengths.tolist() == load().train.lengths.tolist()


@pytest.mark.parametrize(
    ("fields", "other", "message"),
    [
        ({}, {"lengths": np.array([5, *[4] * 10, 0])}, "array 'lengths' at [11]: a sequence of 0 steps, expected at least one"),
        ({}, {"lengths": np.array([-1, *LENGTHS[1:]])}, "at [0]: a sequence of -1 steps, expected at least one"),
        ({}, {"lengths": np.array(LENGTHS[:-1])}, "array 'lengths': 44 steps in all, expected 52"),
        ({}, {"lengths": np.array(LENGTHS, float)}, "is float64 of shape (12,), expected one integer a sequence"),
        ({}, {"lengths": np.empty(0, int)}, "array 'lengths': empty, expected at least one sequence"),
        ({}, {"y": np.zeros(11, int)}, "array 'y': 12 inputs but 11 targets, expected one target for each input"),
        ({}, {"x": np.full((sum(LENGTHS), 2), np.nan)}, "array 'x' at [0, 0]: found nan, expected a finite number"),
        ({}, {"x": np.zeros((sum(LENGTHS), 2, 2))}, "of shape (52, 2, 2), expected numbers (steps, features)"),
        ({}, {"x": np.empty((0, 2))}, "of shape (0, 2), expected numbers (steps, features)"),
        ({"groups": "g"}, {"g": np.zeros(3, int)}, "of shape (3,), expected one integer for each of 12 samples"),
        ({"x": "X"}, {}, "no array 'X'; did you mean 'x'?"),
        ({"path": "s.csv"}, {}, "s.csv: ends with '.csv', expected an .npz or .safetensors file"),
        ({"test_path": "t.npz"}, {}, "t.npz: sequences of 1 features with classes, expected sequences of 2 features with"),
        ({"test_fraction": 0.99}, {}, "test_fraction 0.99 leaves none of 12 samples for training"),
        ({"collate": "pad"}, {}, "data.collate: this source makes its batches itself; leave collate out"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_sentence(fields: dict[str, Any], other: dict[str, Any], message: str) -> None:
    write(**other)
    Path("s.csv").touch()
    write("t.npz", x=np.zeros((sum(LENGTHS), 1)))
    with pytest.raises(UserError) as raised:
        load(**fields)
    assert message in str(raised.value)


OPTIONS = {
    "conv1d": {"channels": [4], "kernel": 3},
    "gru": {"width": 4, "bidirectional": True},
    "conformer": {"width": 8, "heads": 2, "kernel": 3, "layers": 1, "dropout": 0.0},
}


def configuration(size: int, model: str, **train: Any) -> Any:
    """Return a global batch of 4 for any `size`."""
    data = {"target": None, "name": "sequences", "path": "s.npz", "test_fraction": 0.25, "standardise": True}
    return training.configuration(
        model={"target": None, "name": model, **OPTIONS[model]},
        data={**data, "bucket": 2, "batch_size": 4 // size},
        train={"clip_norm": 1.0, **train},
    )


@pytest.mark.parametrize("model", list(OPTIONS))
def test_two_ranks_train_as_one_process_in_buckets(model: str) -> None:
    write()
    one, two, _ = (
        state
        for size in (1, 2)
        for state in threads.run(size, lambda comm, size=size: training.trained(comm, configuration(size, model)))
    )
    training.assert_close(two, one)


def test_a_run_resumes_bitwise_within_an_epoch(tmp_path: Path) -> None:
    write()

    def check(comm: Communicator) -> None:
        through = training.trained(comm, configuration(1, "gru", steps=5, epochs=None))
        training.trainer(
            comm, configuration(1, "gru", steps=2, epochs=None), checkpoints=tmp_path / "checkpoints"
        ).run()
        second = training.trainer(comm, configuration(1, "gru", steps=5, epochs=None))
        second.restore(checkpoint.load(tmp_path, comm, print))
        second.run()
        assert all(torch.equal(value, through[name]) for name, value in training.parameters(second).items())

    threads.run(1, check)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write()
    values = {
        "model": {"name": "conv1d", **OPTIONS["conv1d"]},
        "data": {"name": "sequences", "path": "s.npz", "batch_size": 4, "standardise": True, "test_fraction": 0.25},
        "optimizer": {"name": "Adam", "lr": 0.05},
        "train": {"epochs": 10},
    }
    return trained.train(tmp_path, values)


def test_new_sequences_are_predicted_alike_from_arrays_and_lists_and_in_any_batch(run: Path) -> None:
    predictor = Predictor(load_model(find_run(run)))
    (block,) = predictor.input.blocks(["s.npz"])
    lists = [own(i).tolist() for i in range(12)]
    Path("s.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lists))
    (of_lines,) = predictor.input.blocks(["s.jsonl"])
    found = predictor.predict(block.records, block.place)
    assert sum(one["class"] == i % 2 for i, one in enumerate(found)) >= 11
    for other in (predictor.predict(of_lines.records), [predictor.predict([one])[0] for one in lists]):
        assert [one["class"] for one in other] == [one["class"] for one in found]
        for a, b in zip(other, found, strict=True):
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "line 3: a sequence of 0 steps, expected at least one"),
        ([[1.0, 2.0, 3.0]], "line 3: steps of 3 numbers, expected 2 as in training"),
        ([[1.0], [2.0, 3.0]], "line 3: expected a list of steps, each a list of 2 numbers"),
        ([[1e60, 0.0]], "line 3: a number is not finite in float32"),
    ],
)
def test_bad_records_are_refused_with_their_place(run: Path, record: Any, message: str) -> None:
    encode = Predictor(load_model(find_run(run))).input.encode
    with pytest.raises(UserError) as raised:
        encode([[[1.0, 2.0]], record], lambda i: f"line {i + 2}")
    assert str(raised.value) == message


def program(model: str) -> Any:
    config = configuration(1, model)
    built = build(config, single())
    return source_of(built.model, Inputs(built.data, None), language=False).trace("onnx")


def test_a_program_takes_sequences_of_any_length() -> None:
    write()
    module = program("conv1d").module()
    for samples, steps in ((1, 4), (5, 9)):
        x, mask = torch.rand(samples, steps, 2), torch.ones(samples, steps, dtype=torch.bool)
        assert module(x, mask).shape == (samples, 2)


def test_a_program_of_one_length_only_is_refused() -> None:
    write()
    with pytest.raises(UserError) as raised:
        program("gru")
    assert "dimension 1 only, and samples differ in it" in str(raised.value)


SPELLING = [[1, 2, 3], [3, 1], [2, 2, 1, 3], [2]]
"""Labels of words of a toy language, in which a label is two or three steps of one feature."""


@dataclass(frozen=True)
class Speech:
    """Samples (spectra (1, 3, time), labels), each with its own numbers of steps and labels."""

    name: str = "speech"

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def __len__(self) -> int:
        return 24

    def item(self, index: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(index)
        spelling = torch.tensor(SPELLING[index % 4])
        steps = spelling.repeat_interleave(torch.randint(2, 4, spelling.shape, generator=draw))
        silent = torch.stack([steps, torch.zeros_like(steps)], 1).flatten()
        x = torch.nn.functional.one_hot(silent, 4)[:, 1:].float() + 0.05 * torch.randn(len(silent), 3, generator=draw)
        return x.T[None], spelling


def speech() -> Dataset:
    return Dataset(Speech(), Speech(), DataSpec((1, 3, 12), 4, "classification"))


def test_a_conformer_learns_to_spell_with_ctc_and_two_ranks_are_as_one() -> None:
    def config(size: int, **train: Any) -> Any:
        return training.configuration(
            model={"target": None, "name": "conformer", **OPTIONS["conformer"], "per_step": True},
            data={
                "target": f"{__name__}:speech",
                "collate": {"name": "pad", "dims": [-1], "mask": "mask"},
                "bucket": 2,
                "batch_size": 8 // size,
            },
            optimizer={"name": "Adam", "lr": 0.02, "momentum": None, "weight_decay": None},
            train={
                "loss": {"name": "ctc", "input_lengths": "lengths", "target_padding": -100},
                "clip_norm": 1.0,
                "metrics": [],
                **train,
            },
        )

    one, two, _ = (
        state
        for size in (1, 2)
        for state in threads.run(size, lambda comm, size=size: training.trained(comm, config(size)))
    )
    training.assert_close(two, one, 1e-5)
    log = training.Log()
    threads.run(1, lambda comm: training.trainer(comm, config(1, epochs=20, eval_every=60), sinks=[log]).run())
    assert log.evaluated[-1]["loss"] < 0.8
