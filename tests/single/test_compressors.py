"""Compressors: what is sent, what remains as residual, and the effect on training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.gradients.buckets import GradientBuckets
from hvd_train.gradients.compression.base import BucketLayout, Compressor, Reducer
from hvd_train.gradients.compressors.int8 import quantize
from hvd_train.gradients.compressors.powersgd import matrix
from hvd_train.gradients.compressors.topk import Sparsifier, warmed_up
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.engines import threads

NAMES = plugins.names("hvd_train.gradients.compressors")
OPTIONS: dict[str, dict[str, Any]] = {"topk": {"ratio": 0.25}, "powersgd": {"rank": 1}}
SHAPES = [torch.Size(s) for s in ((7, 9), (5,), (4, 3, 5), (0, 3))]
FEEDBACK = ["powersgd", "topk"]


def compressor(name: str) -> Compressor:
    made: Compressor = plugins.create("hvd_train.gradients.compressors", name, **OPTIONS.get(name, {}))
    return made


def reducer(name: str, comm: Communicator, shapes: list[torch.Size] = SHAPES) -> Reducer:
    return compressor(name).reducer(BucketLayout(shapes, torch.device("cpu"), comm.rank), comm)


def bucket(seed: int, flags: str = "1111", dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random gradients where a flag is 1, zeros elsewhere, then the flags."""
    generator = torch.Generator().manual_seed(seed)
    used = [float(flag) for flag in flags]
    pieces = [torch.randn(s.numel(), generator=generator) * u for s, u in zip(SHAPES, used, strict=True)]
    return torch.cat([*pieces, torch.tensor(used)]).to(dtype)


def reduced(made: Reducer, flat: Tensor) -> Tensor:
    out = flat.clone()
    made.sum_async_(out).wait()
    return out


def gradients(flat: Tensor) -> Tensor:
    return flat[: -len(SHAPES)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_bitwise_equal_and_flags_exact(name: str, dtype: torch.dtype) -> None:
    """Rank 0 has gradients of the first two parameters, rank 2 of the second.

    No rank has one of the others.
    """

    def run(comm: Communicator) -> list[Tensor]:
        made, flags = reducer(name, comm), ("1100", "0000", "0100")[comm.rank]
        return [reduced(made, bucket(10 * step + comm.rank, flags, dtype)) for step in range(3)]

    first, *others = threads.run(3, run)
    for step, flat in enumerate(first):
        assert all(torch.equal(flat, other[step]) for other in others)
        assert flat.dtype == dtype
        assert flat[-4:].tolist() == [1, 2, 0, 0]
        assert not gradients(flat)[7 * 9 + 5 :].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_many_steps_is_that_of_the_exact_sums(name: str) -> None:
    steps = 400

    def run(comm: Communicator) -> Tensor:
        made, mine = reducer(name, comm), bucket(comm.rank)
        return sum((reduced(made, mine) for _ in range(steps)), torch.zeros(())) / steps

    exact = bucket(0) + bucket(1)
    for mean in threads.run(2, run):
        torch.testing.assert_close(mean, exact, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("size", [1, 2])
def test_sent_plus_residual_equals_the_input(name: str, size: int) -> None:
    def run(comm: Communicator) -> list[tuple[Tensor, Tensor, Tensor]]:
        made, history = reducer(name, comm), []
        for step in range(4):
            flat, before = bucket(10 * step + comm.rank), made.state()["residual"].clone()
            sent = reduced(made, flat)
            history.append((gradients(sent), made.state()["residual"].clone(), gradients(flat) + before))
        return history

    for ranks in zip(*threads.run(size, run), strict=True):
        remains, came = (sum((rank[i] for rank in ranks), torch.zeros(())) for i in (1, 2))
        assert remains.abs().max() > 0.1
        torch.testing.assert_close(ranks[0][0] + remains, came, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_parameter_without_gradient_keeps_its_residual(name: str) -> None:
    made = reducer(name, SingleCommunicator())
    reduced(made, bucket(1))
    before = made.state()["residual"].clone()
    reduced(made, bucket(2, "0110"))
    assert torch.equal(made.state()["residual"][:63], before[:63])
    assert not torch.equal(made.state()["residual"], before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_reaches_all_ranks_and_leaves_the_state(name: str, bad: float) -> None:
    def run(comm: Communicator) -> Tensor:
        made, bad_bucket = reducer(name, comm), bucket(5)
        reduced(made, bucket(4))
        before = {key: t.clone() for key, t in made.state().items() if t.is_floating_point()}
        bad_bucket[3] = bad if comm.rank == 0 else 0.0
        seen = reduced(made, bad_bucket)
        assert all(torch.equal(made.state()[key], t) for key, t in before.items())
        return seen

    for seen in threads.run(2, run):
        assert not gradients(seen).isfinite().all()
        assert seen[-4:].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", 4 * (128 + 4)),
        ("fp16", 2 * (128 + 4)),
        ("bf16", 2 * (128 + 4)),
        ("int8", 4 * 1 + 128 + 4),
        ("topk", 8 * 32 + 4),
        ("powersgd", 4 * ((7 + 9) + (4 + 15) + 5 + 4)),
    ],
)
def test_bytes_sent_by_each_of_two_ranks(name: str, expected: int) -> None:
    def run(comm: Communicator) -> int:
        before = comm.bytes_sent
        reduced(reducer(name, comm), bucket(comm.rank))
        return comm.bytes_sent - before

    assert threads.run(2, run) == [expected, expected]


def test_int8_has_a_scale_for_every_1024_elements() -> None:
    def run(comm: Communicator) -> tuple[Tensor, int]:
        flat = torch.cat([torch.linspace(-1, 1, 1024), torch.linspace(-1e-4, 1e-4, 1024), torch.tensor([5.0, 1.0])])
        made, before = reducer("int8", comm, [torch.Size([2049])]), comm.bytes_sent
        return reduced(made, flat) - 2 * flat, comm.bytes_sent - before

    for error, sent in threads.run(2, run):
        assert sent == 2049 + 4 * 3 + 1
        assert error[:1024].abs().max() < 2 / 127
        assert 0 < error[1024:2048].abs().max() < 2e-4 / 127
        assert error[2048:].tolist() == [0, 0]


def test_int8_rounding_is_unbiased_within_one_level() -> None:
    times, x = 4000, torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    noise, total = torch.Generator().manual_seed(2), torch.zeros(3, 64)
    for _ in range(times):
        levels, scales = quantize(x, torch.rand(3, 64, generator=noise))
        assert bool(((levels * scales - x).abs() <= 1.0001 * scales).all())
        total += levels * scales
    deviation = 0.5 * scales / times**0.5
    assert bool(((total / times - x).abs() < 5 * deviation).all())


def test_int8_keeps_zeros_and_the_smallest_numbers() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-45, 0.0], [3e38, -3e38]])
    levels, scales = quantize(x, torch.full((3, 2), 0.99))
    assert (levels[0].tolist(), levels[2].tolist()) == ([0, 0], [127, -127])
    assert bool((scales > 0).all())
    assert scales.isfinite().all()


def test_int8_noise_differs_between_ranks_and_steps_and_is_not_the_global_generator() -> None:
    def run(comm: Communicator) -> tuple[Tensor, Tensor]:
        made, alone = reducer("int8", comm), bucket(1) * float(comm.rank == comm.size - 1)
        alone[-4:] = 1
        return reduced(made, alone), reduced(made, alone)

    before = torch.get_rng_state()
    (first, second), _ = threads.run(2, run)
    ((other, _),) = threads.run(1, run)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert not torch.equal(gradients(first), gradients(other))
    assert all(torch.equal(a, b) for a, b in zip((first, second), threads.run(2, run)[0], strict=True))


def test_topk_sends_the_largest_magnitudes() -> None:
    total = torch.zeros(8)
    codec = Sparsifier(0.3, 0)
    codec.add_(total, codec.encode(torch.tensor([1.0, -9.0, 2.0, 0.5, 8.0, 0.0, -3.0, 1.0])))
    assert total.tolist() == [0, -9, 0, 0, 8, 0, -3, 0]


@pytest.mark.parametrize(
    ("warmup_steps", "shares"),
    [(4, [0.2512, 0.0631, 0.0158, 0.004, 0.001, 0.001]), (0, [0.001, 0.001]), (1, [0.0316, 0.001])],
)
def test_the_share_falls_to_the_ratio(warmup_steps: int, shares: list[float]) -> None:
    assert [warmed_up(0.001, step, warmup_steps) for step in range(len(shares))] == pytest.approx(shares, rel=5e-2)


def test_topk_sends_less_in_each_step_of_the_warm_up() -> None:
    codec = Sparsifier(0.01, 2)
    assert [codec.encode(torch.ones(1000)).numel() for _ in range(4)] == [8 * 216, 8 * 47, 8 * 10, 8 * 10]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 4), (8, 4)), ((6, 2, 5), (6, 10)), ((4, 4), None), ((50,), None), ((), None), ((3, 0), None)],
)
def test_powersgd_factors_only_what_becomes_smaller(shape: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    assert matrix(shape, 2) == expected


def test_powersgd_is_exact_for_matrices_of_its_rank() -> None:
    """The matrix of each rank has rank one, and their sum has rank two."""
    left, right = torch.randn(2, 12, generator=torch.Generator().manual_seed(3)).split([5, 7], 1)

    def run(comm: Communicator) -> Tensor:
        layout = BucketLayout([torch.Size((5, 7))], torch.device("cpu"), 0)
        made = plugins.create("hvd_train.gradients.compressors", "powersgd", rank=2).reducer(layout, comm)
        mine = torch.outer(left[comm.rank], right[comm.rank]).view(-1)
        return [reduced(made, torch.cat([mine, torch.ones(1)])) for _ in range(3)][-1][:-1].view(5, 7)

    for total in threads.run(2, run):
        torch.testing.assert_close(total, left.T @ right, rtol=1e-4, atol=1e-5)


def test_powersgd_starts_from_the_last_factor() -> None:
    """Without error feedback, the error falls to that of the best approximation of this rank."""
    layout = BucketLayout([torch.Size((20, 30))], torch.device("cpu"), 0)
    made = plugins.create("hvd_train.gradients.compressors", "powersgd", rank=2).reducer(layout, SingleCommunicator())
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(4))
    errors = []
    for _ in range(20):
        made.state()["residual"].zero_()
        total = reduced(made, torch.cat([x.view(-1), torch.ones(1)]))[:-1].view(20, 30)
        errors.append(float((total - x).norm()))
    best = float(torch.linalg.svdvals(x)[2:].norm())
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_complex_gradients_are_not_compressed(name: str) -> None:
    p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    buckets = GradientBuckets([p], SingleCommunicator(), compressor(name), 0)
    buckets.arm()
    (p * (1 + 1j)).abs().sum().backward()
    before = p.grad.clone()  # type: ignore[union-attr]
    buckets.reduce()
    assert torch.equal(p.grad, before)  # type: ignore[arg-type]


def settings(name: str, **train: Any) -> Any:
    return body.configuration(
        train={"precision": "fp32", **train}, sync={"compression": {"name": name, **OPTIONS.get(name, {})}}
    )


def test_noise_differs_between_seeds_ranks_and_buckets() -> None:
    def states(comm: Communicator, seed: int) -> list[bytes]:
        job = body.trainer(comm, settings("int8").model_copy(update={"seed": seed}))
        job.strategy.start(job.model)
        return [t.numpy().tobytes() for t in job.strategy.view.rank_state().values()]

    def of(seed: int) -> list[bytes]:
        return [state for rank in threads.run(2, lambda comm: states(comm, seed)) for state in rank]

    assert len(set(of(1) + of(2))) == len(of(1) + of(2)) > 4
    assert of(1) == of(1)


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_the_accuracy_of_no_compression(name: str) -> None:
    def accuracy(comm: Communicator, name: str) -> tuple[float, dict[str, Tensor]]:
        job = body.trainer(comm, settings(name, epochs=8))
        job.run()
        return job.evaluation.metrics["accuracy"], body.parameters(job)

    plain, _ = threads.run(2, lambda comm: accuracy(comm, "none"))[0]
    (reached, first), (_, second) = threads.run(2, lambda comm: accuracy(comm, name))
    assert reached > plain - 0.06
    assert plain > 0.8
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_bitwise_equal(name: str, tmp_path: Path) -> None:
    def resumed(comm: Communicator) -> dict[str, Tensor]:
        body.trainer(comm, settings(name, steps=7, epochs=None), checkpoints=tmp_path / "checkpoints").run()
        job = body.trainer(comm, settings(name, steps=12, epochs=None))
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return body.parameters(job)

    through = threads.run(2, lambda comm: body.trained(comm, settings(name, steps=12, epochs=None)))
    for whole, again in zip(through, threads.run(2, resumed), strict=True):
        assert all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize(("size", "other"), [(1, "topk"), (2, "powersgd")])
def test_resume_with_other_ranks_or_another_compressor_begins_without_residual(
    size: int, other: str, tmp_path: Path
) -> None:
    def first(comm: Communicator) -> None:
        body.trainer(comm, settings("topk", steps=3, epochs=None), checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> float:
        job = body.trainer(comm, settings(other, steps=3, epochs=None))
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.strategy.start(job.model)
        return max(float(t.abs().max()) for n, t in job.strategy.view.rank_state().items() if n.endswith("residual"))

    threads.run(2, first)
    assert threads.run(size, then) == [0.0] * size
