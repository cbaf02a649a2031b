import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvd_train import plugins

PACKAGE = "hvd_train.partition"
SHUFFLING = ("contiguous", "random")
EVERY = plugins.names(PACKAGE)


def shards(name: str, n: int, size: int, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    partitioner = plugins.create(PACKAGE, name)
    labels = torch.zeros(n, dtype=torch.int64)
    dealt = [partitioner.indices(labels, rank, size, epoch=epoch, seed=seed) for rank in range(size)]
    assert all(part.dtype == torch.int64 for part in dealt)
    return [part.tolist() for part in dealt]


@pytest.mark.parametrize("name", EVERY)
@given(st.integers(0, 200), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32))
def test_shards_are_disjoint_even_cover_the_data_and_repeat(name, n, size, epoch, seed):
    parts = shards(name, n, size, epoch, seed)
    assert sorted(i for part in parts for i in part) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == shards(name, n, size, epoch, seed)


@pytest.mark.parametrize("name", ["round_robin", "random"])
@given(st.integers(1, 300), st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]), st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_number_of_ranks(name, n, world, epoch):
    size, batch = world

    def steps(size: int, batch: int) -> list[set[int]]:
        parts = shards(name, n, size, epoch)
        count = -(-max(map(len, parts)) // batch)
        return [{i for part in parts for i in part[step * batch : (step + 1) * batch]} for step in range(count)]

    assert steps(size, batch) == steps(1, 12)


@pytest.mark.parametrize("name", SHUFFLING)
def test_epochs_and_seeds_shuffle_anew(name):
    first = shards(name, 100, 2)
    assert first != shards(name, 100, 2, epoch=1)
    assert first != shards(name, 100, 2, seed=1)
    assert shards(name, 100, 2, epoch=1) != shards(name, 100, 2, seed=1)


def test_contiguous_gives_blocks_with_the_remainder_first():
    assert [sorted(part) for part in shards("contiguous", 8, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_round_robin_keeps_the_natural_order():
    assert shards("round_robin", 7, 3, epoch=4, seed=2) == [[0, 3, 6], [1, 4], [2, 5]]
