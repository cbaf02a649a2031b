"""Length bucketing from `data.bucket` to the batches of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data import lengths
from hvd_train.data.load import load
from hvd_train.data.memory.node import ALONE
from hvd_train.errors import UserError
from hvd_train.training import checkpoint
from tests.bodies import nested, training
from tests.engines import threads


class Counted(Dataset[Any]):
    """Sequences of 1, 2, ... tokens that count how often they are made."""

    made = 0

    def __init__(self, count: int = 6) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        Counted.made += 1
        return {"x": [1] * (index + 1), "labels": torch.rand(1)}


class Known(Counted):
    lengths = np.array([5, 3, 3, 9, 1, 2])


class Miscounted(Counted):
    lengths = (1, 2)


class NodeOfTwo:
    """Rank `rank` of two on a node; the other rank answers `other`."""

    size = 2

    def __init__(self, rank: int, other: list[int]) -> None:
        self.rank, self._other = rank, other

    def gather(self, value: Any) -> list[Any]:
        return [value, self._other] if self.rank == 0 else [self._other, value]


def data(kind: str, **fields: Any) -> DataSection:
    values = {"target": f"tests.single.test_bucketing:{kind}", "collate": "pad", "bucket": 2, **fields}
    return read_section(DataSection, Document(values, "test"))


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"x": torch.zeros(3, 2), "y": [1, 2], "n": 5, "s": "a long text"}, 6),
        ((np.zeros((1, 7)), 0), 7),
        ([[1, 2, 3], [4]], 3),
        ([[[1, 2], [3, 4]], torch.zeros(())], 2),
        ([], 0),
    ],
)
def test_a_length_is_the_size_of_the_largest_array(sample: Any, expected: int) -> None:
    assert lengths.length(sample) == expected


def test_lengths_are_measured_once_and_the_ranks_of_a_node_share_the_work() -> None:
    split = load(data("Counted", bucket=None)).train
    state = torch.get_rng_state()
    for node, made in ((ALONE, 6), (NodeOfTwo(0, [2, 4, 6]), 3), (NodeOfTwo(1, [1, 3, 5]), 3)):
        Counted.made = 0
        found, warning = lengths.lengths(split, node, seed=0)
        assert found.tolist() == [1, 2, 3, 4, 5, 6]
        assert warning is None
        assert Counted.made == made
    assert torch.equal(torch.get_rng_state(), state)


def test_lengths_of_the_data_set_are_taken_and_evaluations_are_sorted_by_them() -> None:
    Counted.made = 0
    load(data("Known", bucket=None))
    before, Counted.made = Counted.made, 0
    split = load(data("Known")).train
    assert split.lengths.tolist() == [5, 3, 3, 9, 1, 2]
    assert Counted.made == before
    assert lengths.by_length(split, torch.arange(6)).tolist() == [4, 5, 1, 2, 0, 3]
    assert lengths.by_length(split, torch.tensor([3, 0])).tolist() == [0, 3]
    assert lengths.by_length(load(data("Known", bucket=None)).train, torch.tensor([3, 0])).tolist() == [3, 0]


DIGITS = read_section(DataSection, Document({"name": "digits", "bucket": 2}, "test"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (data("Miscounted"), "training: 2 lengths, expected one for each of 6 samples"),
        (
            read_section(DataSection, Document({"name": "digits", "bucket": 2}, "test")),
            "are arrays of one shape; leave bucket out",
        ),
    ],
)
def test_refusals(section: DataSection, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load(section)
    assert message in str(raised.value)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_resumes_bitwise_within_an_epoch(size: int, tmp_path: Path) -> None:
    def config(steps: int) -> Any:
        return nested.configuration("padded sequences in buckets", size, steps=steps, epochs=None, accumulate=2)

    def check(comm: Any) -> None:
        through = training.trained(comm, config(5))
        training.trainer(comm, config(2), checkpoints=tmp_path / "checkpoints").run()
        second = training.trainer(comm, config(5))
        second.restore(checkpoint.load(tmp_path, comm, print))
        second.run()
        assert all(torch.equal(value, through[name]) for name, value in training.parameters(second).items())

    threads.run(size, check)
