"""Partitioners are pure functions: what every one keeps to, and what each adds."""

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hvd_train import plugins
from hvd_train.errors import UserError
from hvd_train.partition._apportion import apportion
from hvd_train.partition.weighted import deal

PACKAGE = "hvd_train.partition"
EVERY = plugins.names(PACKAGE)
RESAMPLING = {"balanced"}
BY_CLASS = {"balanced", "by_label", "dirichlet"}
UNEVEN = {"by_label", "dirichlet"}
SHUFFLING = [name for name in EVERY if name != "round_robin"]
EQUAL_BATCHES = ["balanced", "random", "round_robin"]
"""Those whose global batches are the same for any number of ranks; `weighted` is so where batches are its own."""


def shards(name, labels, size, epoch=0, seed=0, **options):
    labels = torch.tensor(labels, dtype=torch.int64) if isinstance(labels, list) else labels
    partitioner = plugins.create(PACKAGE, name, **options)
    dealt = [partitioner.indices(labels, rank, size, epoch=epoch, seed=seed) for rank in range(size)]
    assert all(part.dtype == torch.int64 for part in dealt)
    return [part.tolist() for part in dealt]


def classes(n, kinds=5):
    """Unequally frequent, in no order."""
    return (torch.arange(n) ** 2 // 3) % kinds


@pytest.mark.parametrize("name", EVERY)
@given(st.integers(0, 200), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32))
def test_shards_are_disjoint_cover_the_data_and_repeat(name, n, size, epoch, seed):
    if name in UNEVEN:
        assume(n >= 3 * size)
    parts = shards(name, classes(n), size, epoch, seed)
    assert sum(map(len, parts)) == n
    if name not in RESAMPLING:
        assert sorted(i for part in parts for i in part) == list(range(n))
    if name not in UNEVEN:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == shards(name, classes(n), size, epoch, seed)


@pytest.mark.parametrize("name", EQUAL_BATCHES)
@given(st.integers(1, 300), st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]), st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_number_of_ranks(name, n, world, epoch):
    size, batch = world

    def steps(size: int, batch: int) -> list[Counter[int]]:
        parts = shards(name, classes(n), size, epoch)
        count = -(-max(map(len, parts)) // batch)
        return [Counter(i for part in parts for i in part[step * batch : (step + 1) * batch]) for step in range(count)]

    assert steps(size, batch) == steps(1, 12)


@pytest.mark.parametrize("name", SHUFFLING)
def test_epochs_and_seeds_shuffle_anew(name):
    first = shards(name, classes(100), 2)
    assert first != shards(name, classes(100), 2, epoch=1)
    assert first != shards(name, classes(100), 2, seed=1)
    assert shards(name, classes(100), 2, epoch=1) != shards(name, classes(100), 2, seed=1)


@pytest.mark.parametrize("name", sorted(UNEVEN | {"contiguous"}))
def test_workers_keep_their_samples_for_the_whole_run(name):
    first, second = (shards(name, classes(100), 3, epoch) for epoch in (0, 7))
    assert [set(part) for part in first] == [set(part) for part in second]


@pytest.mark.parametrize("name", sorted(UNEVEN))
def test_a_fixed_split_is_another_by_another_seed(name):
    first, second = (shards(name, classes(100), 3, seed=seed) for seed in (0, 1))
    assert [set(part) for part in first] != [set(part) for part in second]


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_a_partitioner_answers_for_the_data_it_is_asked_about(name):
    """It remembers its last answer: other labels, workers and seeds are other questions."""
    partitioner = plugins.create(PACKAGE, name)

    def sets(labels, size, seed):
        return [set(partitioner.indices(labels, r, size, epoch=0, seed=seed).tolist()) for r in range(size)]

    for question in [(classes(60), 2, 0), (classes(90), 2, 0), (classes(60), 3, 0), (classes(60), 3, 1)]:
        assert sets(*question) == [set(part) for part in shards(name, *question[:2], seed=question[2])]


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_without_classes_there_is_nothing_to_deal_by(name):
    with pytest.raises(UserError, match="it deals samples by class, and these have none; use random"):
        shards(name, [-1] * 8, 2)


def test_contiguous_gives_blocks_with_the_remainder_first():
    assert [sorted(part) for part in shards("contiguous", [0] * 8, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_round_robin_keeps_the_natural_order():
    assert shards("round_robin", [0] * 7, 3, epoch=4, seed=2) == [[0, 3, 6], [1, 4], [2, 5]]


def histograms(parts, labels):
    return np.array([np.bincount(labels[part], minlength=int(labels.max()) + 1) for part in parts])


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.05, 1000), st.integers(0, 1000))
def test_dirichlet_leaves_no_worker_without_samples(per_worker, size, alpha, seed):
    labels = classes(per_worker * size)
    try:
        parts = shards("dirichlet", labels, size, seed=seed, alpha=alpha)
    except UserError:
        assert per_worker * min(alpha, 1) < 10
    else:
        assert all(parts)


def test_dirichlet_deals_each_class_by_the_shares_it_draws():
    """Samples of a class are within one of its share, so a large class shows the shares: their moments are known."""
    classes, workers, each, alpha = 200, 4, 500, 0.5
    labels = torch.arange(classes).repeat(each)
    shares = histograms(shards("dirichlet", labels, workers, alpha=alpha), labels) / each
    assert shares.sum(axis=0) == pytest.approx(1)
    variance = (1 / workers) * (1 - 1 / workers) / (workers * alpha + 1)
    assert shares.mean() == pytest.approx(1 / workers)
    assert shares.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(("alpha", "least", "most"), [(1e-3, 0.97, 1), (1e6, 0.25, 0.26)])
def test_the_larger_alpha_the_more_equal_are_workers(alpha, least, most):
    labels = torch.arange(200).repeat(500)
    shares = histograms(shards("dirichlet", labels, 4, alpha=alpha), labels) / 500
    assert least <= shares.max(axis=0).mean() <= most


@pytest.mark.parametrize(("n", "alpha"), [(3, 1.0), (0, 1.0), (8, 1e-9)])
def test_dirichlet_refuses_what_leaves_a_worker_without_samples(n, alpha):
    with pytest.raises(UserError, match=f"leaves one of 4 workers without any of {n} samples"):
        shards("dirichlet", [0] * n, 4, alpha=alpha)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 100), st.integers(0, 9))
def test_by_label_gives_each_worker_its_blocks_of_the_sorted_samples(count, size, more, seed):
    n = count * size + more
    labels = classes(n)
    block = n // (count * size)
    parts = shards("by_label", labels, size, seed=seed, shards=count)
    most = 2 * count if block <= min(Counter(labels.tolist()).values()) else len(set(labels.tolist()))
    for part in parts:
        assert count * block <= len(part) <= count * (block + 1)
        assert len(set(labels[part].tolist())) <= most


def test_by_label_with_blocks_of_one_class_gives_classes_whole():
    labels = torch.arange(8).repeat(10)
    held = histograms(shards("by_label", labels, 4), labels)
    assert ((held == 0) | (held == 10)).all()
    assert (held.sum(axis=1) == 20).all()
    assert (held.sum(axis=0) == 10).all()


def test_by_label_refuses_more_blocks_than_samples():
    with pytest.raises(UserError, match="by_label cuts 7 samples into 8 blocks, 2 for each of 4 workers"):
        shards("by_label", [0] * 7, 4)


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 5))
def test_balanced_draws_classes_and_their_samples_equally_often(labels, epoch):
    draws = Counter(i for part in shards("balanced", labels, 3, epoch) for i in part)
    of_class = Counter()
    for i, n in draws.items():
        of_class[labels[i]] += n
    times = [of_class[c] for c in set(labels)]
    assert sum(times) == len(labels)
    assert max(times, default=0) - min(times, default=0) <= 1
    for c in set(labels):
        of_samples = [draws[i] for i, label in enumerate(labels) if label == c]
        assert max(of_samples) - min(of_samples) <= 1


weights = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@given(st.integers(0, 1000), weights)
def test_parts_are_within_one_of_their_proportion(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1 + 1e-9


@given(weights, st.integers(1, 4), st.integers(0, 200))
def test_no_part_is_below_the_minimum_and_larger_weights_have_no_smaller_parts(weights, minimum, more):
    total = minimum * len(weights) + more
    parts = apportion(total, weights, minimum)
    assert sum(parts) == total
    assert min(parts) >= minimum
    ordered = [part for _, part in sorted(zip(weights, parts, strict=True))]
    assert all(later - earlier >= -1 for earlier, later in pairwise(ordered))


@pytest.mark.parametrize(
    ("total", "weights", "minimum", "expected"),
    [
        (8, [3, 1], 0, [6, 2]),
        (7, [1, 1], 0, [4, 3]),
        (4, [22, 18], 0, [2, 2]),
        (10, [1, 1, 1], 0, [4, 3, 3]),
        (4, [1000, 1], 1, [3, 1]),
        (8, [1e-300, 1, 1e300], 1, [1, 1, 6]),
        (3, [5, 4, 3], 1, [1, 1, 1]),
        (0, [0, 0], 0, [0, 0]),
    ],
)
def test_apportionment(total, weights, minimum, expected):
    assert apportion(total, weights, minimum) == expected


@given(st.integers(0, 300), weights, st.integers(0, 3))
def test_weighted_shares_are_within_one_of_their_proportion(n, weights, epoch):
    parts = shards("weighted", [-1] * n, len(weights), epoch, weights=weights)
    assert sorted(i for part in parts for i in part) == list(range(n))
    for part, weight in zip(parts, weights, strict=True):
        assert abs(len(part) - n * weight / sum(weights)) < 1 + 1e-9


@given(st.integers(0, 300), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_blocks_dealt_by_batches_are_those_of_one_process(n, batches, epoch):
    (alone,) = shards("random", [-1] * n, 1, epoch, 3)
    parts = [deal(n, rank, batches, epoch=epoch, seed=3).tolist() for rank in range(len(batches))]
    block = sum(batches)
    for step in range(-(-n // block)):
        mine = [part[step * b : (step + 1) * b] for part, b in zip(parts, batches, strict=True)]
        assert sorted(i for part in mine for i in part) == sorted(alone[step * block : (step + 1) * block])
    assert all(len(part) <= -(-n // block) * b for part, b in zip(parts, batches, strict=True))


def test_weights_are_one_for_each_worker():
    with pytest.raises(UserError, match="3 weights for 4 workers, expected one for each, or auto"):
        shards("weighted", [0] * 8, 4, weights=[1, 2, 3])


@pytest.mark.parametrize("name", [name for name in EVERY if name not in {"contiguous", "round_robin"}])
def test_the_shards_of_64_workers_of_a_million_samples_take_one_look_at_them(name):
    labels = torch.arange(1_000_000) % 10

    def seconds(size, epoch):
        partitioner, before = plugins.create(PACKAGE, name), time.thread_time()
        lengths = [len(partitioner.indices(labels, rank, size, epoch=epoch, seed=0)) for rank in range(size)]
        assert sum(lengths) == len(labels)
        return time.thread_time() - before

    assert seconds(64, 1) < 5 * seconds(1, 2) + 0.1
