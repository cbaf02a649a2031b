"""Partitioners are pure functions: the properties of all of them, and of each one."""

import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hvd_train.config import plugins
from hvd_train.data.partitioning.apportion import apportion
from hvd_train.data.partitioning.base import for_split
from hvd_train.data.partitioning.bucketing import Buckets
from hvd_train.data.partitioning.order import bucketed, shuffled
from hvd_train.data.partitions.weighted import divide, spread
from hvd_train.errors import UserError

PACKAGE = "hvd_train.data.partitions"
EVERY = plugins.names(PACKAGE)
RESAMPLING = {"balanced"}
BY_CLASS = {"balanced", "by_label", "dirichlet"}
UNEVEN = {"by_group", "by_label", "dirichlet"}
SHUFFLING = [name for name in EVERY if name != "round_robin"]
EQUAL_BATCHES = ["balanced", "random", "round_robin"]
"""Those whose global batches are the same for any number of ranks. `test_blocks_by_batches` has those of `weighted`."""
BATCH = 16


def made(name, samples, each=2, **options):
    """Return a partitioner. Of `by_group`, `each` neighbours are a group."""
    groups = torch.arange(samples) // each
    return for_split(plugins.create(PACKAGE, name, **options), SimpleNamespace(groups=groups))


def shards(name, labels, size, epoch=0, seed=0, **options):
    labels = torch.tensor(labels, dtype=torch.int64) if isinstance(labels, list) else labels
    partitioner = made(name, len(labels), **options)
    partitioner.check(size)
    parts = [partitioner.share(labels, rank, size, batch_size=BATCH, epoch=epoch, seed=seed) for rank in range(size)]
    assert all(part.indices.dtype == torch.int64 for part in parts)
    assert sum(part.batch_size for part in parts) == BATCH * size
    return [part.indices.tolist() for part in parts]


def classes(n, kinds=5):
    """Return classes of unequal frequency in no order."""
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
def test_every_epoch_and_seed_has_its_own_order(name):
    first = shards(name, classes(100), 2)
    assert first != shards(name, classes(100), 2, epoch=1)
    assert first != shards(name, classes(100), 2, seed=1)
    assert shards(name, classes(100), 2, epoch=1) != shards(name, classes(100), 2, seed=1)


@pytest.mark.parametrize("name", sorted(UNEVEN | {"contiguous"}))
def test_workers_keep_their_samples_for_the_whole_run(name):
    first, second = (shards(name, classes(100), 3, epoch) for epoch in (0, 7))
    assert [set(part) for part in first] == [set(part) for part in second]


@pytest.mark.parametrize("name", sorted(UNEVEN))
def test_a_fixed_split_depends_on_the_seed(name):
    first, second = (shards(name, classes(100), 3, seed=seed) for seed in (0, 1))
    assert [set(part) for part in first] != [set(part) for part in second]


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_a_cached_split_is_not_used_for_other_arguments(name):
    """A partitioner caches its last split. Other labels, workers and seeds need another split."""
    partitioner = plugins.create(PACKAGE, name)

    def sets(labels, size, seed):
        return [
            set(partitioner.share(labels, r, size, batch_size=BATCH, epoch=0, seed=seed).indices.tolist())
            for r in range(size)
        ]

    for arguments in [(classes(60), 2, 0), (classes(90), 2, 0), (classes(60), 3, 0), (classes(60), 3, 1)]:
        assert sets(*arguments) == [set(part) for part in shards(name, *arguments[:2], seed=arguments[2])]


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_data_without_classes_is_refused(name):
    with pytest.raises(UserError, match="divides samples by class, and the data has no classes; use random"):
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


def test_dirichlet_divides_each_class_by_its_drawn_shares():
    """Samples of a class are within one of its share, so a large class shows the shares: their moments are known."""
    classes, workers, each, alpha = 200, 4, 500, 0.5
    labels = torch.arange(classes).repeat(each)
    shares = histograms(shards("dirichlet", labels, workers, alpha=alpha), labels) / each
    assert shares.sum(axis=0) == pytest.approx(1)
    variance = (1 / workers) * (1 - 1 / workers) / (workers * alpha + 1)
    assert shares.mean() == pytest.approx(1 / workers)
    assert shares.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(("alpha", "least", "most"), [(1e-3, 0.97, 1), (1e6, 0.25, 0.26)])
def test_a_larger_alpha_gives_more_equal_shares(alpha, least, most):
    labels = torch.arange(200).repeat(500)
    shares = histograms(shards("dirichlet", labels, 4, alpha=alpha), labels) / 500
    assert least <= shares.max(axis=0).mean() <= most


@pytest.mark.parametrize(("n", "alpha"), [(3, 1.0), (0, 1.0), (8, 1e-9)])
def test_dirichlet_refuses_a_split_that_leaves_a_worker_without_samples(n, alpha):
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
def test_weighted_shares_are_disjoint_and_in_proportion_to_batches(n, weights, epoch):
    parts = shards("weighted", [-1] * n, len(weights), epoch, weights=weights)
    assert sorted(i for part in parts for i in part) == list(range(n))
    batches = apportion(BATCH * len(weights), weights, minimum=1)
    for part, batch in zip(parts, batches, strict=True):
        assert abs(len(part) - n * batch / sum(batches)) < 1 + 1e-9


def test_weighted_shares_follow_measured_speeds_only_if_no_weights_are_given():
    labels = torch.full((64,), -1)
    for given_, expected in (("auto", [12, 4]), ([1, 1], [8, 8])):
        partitioner = plugins.create(PACKAGE, "weighted", weights=given_)
        parts = [partitioner.share(labels, r, 2, batch_size=8, epoch=0, seed=0, speeds=[0.75, 0.25]) for r in (0, 1)]
        assert [part.batch_size for part in parts] == expected
        assert [len(part.indices) for part in parts] == [4 * batch for batch in expected]


@given(st.integers(0, 300), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_blocks_by_batches_are_those_of_one_process(n, batches, epoch):
    (alone,) = shards("random", [-1] * n, 1, epoch, 3)
    parts = [divide(shuffled(n, epoch=epoch, seed=3), rank, batches).tolist() for rank in range(len(batches))]
    block = sum(batches)
    for step in range(-(-n // block)):
        mine = [part[step * b : (step + 1) * b] for part, b in zip(parts, batches, strict=True)]
        assert sorted(i for part in mine for i in part) == sorted(alone[step * block : (step + 1) * block])
    assert all(len(part) <= -(-n // block) * b for part, b in zip(parts, batches, strict=True))


@pytest.mark.parametrize(
    ("batches", "columns"), [([2, 2], [[0, 2], [1, 3]]), ([1, 3], [[1], [0, 2, 3]]), ([0, 2], [[], [0, 1]])]
)
def test_parts_of_a_block_are_evenly_spread(batches, columns):
    assert [spread(batches, worker).tolist() for worker in range(len(batches))] == columns


lengths_of = st.lists(st.integers(1, 30), min_size=1, max_size=200)


@given(lengths_of, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_buckets_are_sorted_windows_whose_batches_are_shuffled(lengths, batch, window, seed):
    lengths, order = np.array(lengths), np.random.default_rng(seed).permutation(len(lengths))
    arranged = bucketed(order, lengths, batch=batch, window=window, generator=np.random.default_rng(seed))
    full = len(order) // batch * batch
    expected = [
        tuple(part[start : start + batch])
        for at in range(0, full, batch * window)
        for part in [sorted(order[at : min(at + batch * window, full)], key=lambda i: lengths[i])]
        for start in range(0, len(part), batch)
    ]
    assert sorted(tuple(arranged[start : start + batch]) for start in range(0, full, batch)) == sorted(expected)
    assert arranged[full:].tolist() == order[full:].tolist()


@pytest.mark.parametrize("name", [*EQUAL_BATCHES, "weighted"])
@given(lengths_of, st.sampled_from([(1, 12, 1), (2, 6, 1), (3, 2, 2), (4, 3, 1), (1, 2, 6)]), st.integers(0, 2))
def test_bucketed_global_batches_do_not_depend_on_ranks_and_accumulation(name, lengths, world, epoch):
    n, options = len(lengths), {"weighted": {"weights": "auto"}}.get(name, {})

    def steps(size, batch, accumulate):
        buckets = Buckets(np.array(lengths), 3, accumulate, seed=5)
        partitioner = buckets.of(plugins.create(PACKAGE, name, **options))
        speeds = list(range(1, size + 1))
        parts = [
            partitioner.share(classes(n), r, size, batch_size=batch, epoch=epoch, seed=0, speeds=speeds)
            for r in range(size)
        ]
        full = [part.batch_size * accumulate for part in parts]
        count = max(-(-len(part.indices) // f) for part, f in zip(parts, full, strict=True))
        return [
            Counter(i for part, f in zip(parts, full, strict=True) for i in part.indices[s * f : (s + 1) * f].tolist())
            for s in range(count)
        ]

    assert steps(*world) == steps(1, 12, 1)


@pytest.mark.parametrize("name", EVERY)
def test_buckets_keep_the_samples_of_a_fixed_partition_with_their_workers(name):
    lengths = np.arange(101) ** 2 % 37
    partitioner = Buckets(lengths, 4, 2, seed=1).of(made(name, 101))
    parts = [
        [partitioner.share(classes(101), r, 3, batch_size=4, epoch=e, seed=0).indices.tolist() for r in range(3)]
        for e in (0, 1)
    ]
    assert parts[0] != parts[1]
    if name not in RESAMPLING:
        assert sorted(i for part in parts[1] for i in part) == list(range(101))
    if partitioner.fixed:
        assert [set(part) for part in parts[0]] == [set(part) for part in parts[1]]


@pytest.mark.parametrize("name", EVERY)
def test_buckets_save_padding(name):
    lengths = np.random.default_rng(0).integers(1, 200, 512)

    def padded(partitioner):
        own = [partitioner.share(classes(512), r, 2, batch_size=8, epoch=0, seed=0).indices.numpy() for r in range(2)]
        return sum(8 * lengths[part[at : at + 8]].max() for part in own for at in range(0, len(part), 8))

    plain = made(name, 512)
    assert padded(Buckets(lengths, 16, 1, seed=0).of(plain)) < 0.7 * padded(plain)


def test_a_group_stays_on_one_worker_and_workers_have_about_equally_many_samples():
    groups = torch.tensor([7, 7, 7, 7, -1, -1, -1, 300, 300, 5, 5, 9])
    partitioner = for_split(plugins.create(PACKAGE, "by_group"), SimpleNamespace(groups=groups))
    parts = [
        partitioner.share(torch.full((12,), -1), rank, 3, batch_size=2, epoch=0, seed=4).indices for rank in range(3)
    ]
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    owned = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, owned)) == 5, "a group is on two workers"
    assert sorted(map(len, parts)) == [4, 4, 4]


def test_by_group_refuses_fewer_groups_than_workers_and_samples_without_groups():
    with pytest.raises(UserError, match="there are 3 groups for 4 workers; start fewer ranks, or take random"):
        shards("by_group", [0] * 6, 4)
    without = for_split(plugins.create(PACKAGE, "by_group"), SimpleNamespace(groups=None))
    with pytest.raises(UserError, match="the samples here have no groups; take random, or a data source that has them"):
        without.check(2)


def test_weights_are_one_for_each_worker():
    with pytest.raises(UserError, match="3 weights for 4 workers, expected one for each, or auto"):
        shards("weighted", [0] * 8, 4, weights=[1, 2, 3])


@pytest.mark.parametrize("name", [name for name in EVERY if name not in {"contiguous", "round_robin"}])
def test_the_shares_of_64_workers_take_about_the_time_of_one(name):
    labels = torch.arange(1_000_000) % 10

    def seconds(size, epoch):
        partitioner, before = made(name, len(labels), each=100), time.thread_time()
        lengths = [
            len(partitioner.share(labels, rank, size, batch_size=BATCH, epoch=epoch, seed=0).indices)
            for rank in range(size)
        ]
        assert sum(lengths) == len(labels)
        return time.thread_time() - before

    assert seconds(64, 1) < 5 * seconds(1, 2) + 0.1
