"""The parameter server and Adasum: plain functions of a communicator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.config.schema import Config
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.servers.aggregate import AGGREGATORS, LEAST
from tests.bodies import replicas
from tests.bodies import training as body

GLOBAL_BATCH = 48
"""A multiple of 1 to 4 workers; some workers have fewer samples in the last step of an epoch."""

EQUAL = [
    ("sgd", 1, "colocated"),
    ("adamw", 2, "colocated"),
    ("adamw", 1, "dedicated"),
    ("accumulate", 3, "colocated"),
    ("accumulate", 2, "dedicated"),
    ("sharded by whole tensors", 2, "colocated"),
    ("sharded by whole tensors", 1, "dedicated"),
    ("clipped", 3, "colocated"),
    ("clipped", 3, "dedicated"),
    ("scheduled", 2, "dedicated"),
    ("one runs out of samples", 2, "colocated"),
]


MORE: dict[str, dict[str, dict[str, Any]]] = {
    "one runs out of samples": {},
    "plain": {"optimizer": {"momentum": 0.0}},
    "halves": {"train": {"epochs": 1, "precision": "fp16"}},
}


def layouts(comm: Communicator) -> list[tuple[int, str]]:
    """Return 1, 2 and 3 servers in both placements, if there are enough ranks."""
    both = [(servers, placement) for servers in (1, 2, 3) for placement in ("colocated", "dedicated")]
    return [(servers, placement) for servers, placement in both if fits(comm, servers, placement)]


def fits(comm: Communicator, servers: int, placement: str) -> bool:
    return servers + (placement == "dedicated") <= comm.size


def workers_of(comm: Communicator, servers: int, placement: str) -> int:
    return comm.size - servers * (placement == "dedicated")


def variant(name: str, workers: int, batch: int, **sync: Any) -> Config:
    """Return the variant of `training.VARIANTS` in which `workers` share a global batch."""
    sections = {section: dict(fields) for section, fields in {**body.VARIANTS, **MORE}[name].items()}
    sections["train"] = {"epochs": 2, **sections.get("train", {})}
    accumulate = sections["train"].get("accumulate", 1)
    sections.setdefault("data", {})["batch_size"] = batch // workers // accumulate
    sections["sync"] = sync
    return body.configuration(**sections)


def alone_on(comm: Communicator, name: str, batch: int) -> dict[str, Tensor]:
    """Return the parameters of one process after the variant, trained once; collective."""
    with body.alone(comm):
        return _alone_on(name, batch)


@functools.cache
def _alone_on(name: str, batch: int) -> dict[str, Tensor]:
    return body.trained(SingleCommunicator(), variant(name, 1, batch))


def gradients_equal_one_process(comm: Communicator) -> None:
    """Results equal to 1e-6 in float64, for 1 to 3 servers in both placements."""
    for name, servers, placement in EQUAL:
        if not fits(comm, servers, placement):
            continue
        workers = workers_of(comm, servers, placement)
        batch = GLOBAL_BATCH if name != "one runs out of samples" else body.SAMPLES // workers * workers
        alone = alone_on(comm, name, batch)
        served = {"strategy": "parameter_server", "servers": servers, "placement": placement}
        try:
            body.assert_close(body.trained(comm, variant(name, workers, batch, **served)), alone)
        except AssertionError as error:
            raise AssertionError(f"{name}, {servers} {placement}: {error}") from None


def halves_stay_close_and_an_overflow_skips_the_step_everywhere(comm: Communicator) -> None:
    """With scaled losses, all ranks know of an overflow before servers see a gradient."""
    alone = alone_on(comm, "halves", GLOBAL_BATCH)
    for servers, placement in layouts(comm):
        workers = workers_of(comm, servers, placement)
        served = {"strategy": "parameter_server", "servers": servers, "placement": placement}
        config = variant("halves", workers, GLOBAL_BATCH, **served)
        for name, value in body.trained(comm, config).items():
            assert (value - alone[name]).abs().max() < 0.01, (servers, placement, name)
        job = body.trainer(comm, config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})}))
        before = body.parameters(job)
        if comm.rank == workers - 1:
            next(job.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        job.run()
        assert all(torch.equal(value, before[name]) for name, value in body.parameters(job).items())


def parameters_weighted_by_samples_equal_one_process(comm: Communicator) -> None:
    """Without momentum, workers' steps merged by samples equal one step on all samples."""
    alone = alone_on(comm, "plain", GLOBAL_BATCH)
    for servers, placement in [(1, "colocated"), (2, "dedicated")]:
        if not fits(comm, servers, placement):
            continue
        results = {}
        for merge in ("weights", "mean"):
            layout = {"strategy": "parameter_server", "servers": servers, "placement": placement}
            workers = workers_of(comm, servers, placement)
            config = variant("plain", workers, GLOBAL_BATCH, mode="parameters", merge=merge, **layout)
            results[merge] = body.trained(comm, config)
        body.assert_close(results["weights"], alone)
        apart = max(float((results["mean"][n] - alone[n]).abs().max()) for n in alone)
        assert workers_of(comm, servers, placement) == 1 or apart > 1e-5, "samples are uneven: the plain mean differs"


PLAIN = Build("SGD", {"lr": 1.0})
"""A step subtracts the gradient."""


def stepping(
    comm: Communicator, model: nn.Module, strategy: str = "parameter_server", build: Build = PLAIN, **options: Any
) -> tuple[SyncStrategy, ModelOptimizer]:
    """Return a strategy that has started, and its optimizer."""
    made = plugins.create("hvd_train.sync.strategies", strategy, Context(comm, Identity(), 64), **options)
    optimizer = made.optimizer(model, build)
    made.start(model)
    return made, optimizer


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def merge_is_that_of_the_formula(comm: Communicator) -> None:
    """Worker i has parameters i + 1 and i * i samples; dedicated servers have other parameters."""
    for servers, placement in layouts(comm):
        workers = workers_of(comm, servers, placement)
        own = torch.arange(1.0, workers + 1)
        samples = torch.arange(1.0, workers + 1).square()
        given = [float(workers - i) for i in range(workers)]
        mean, weighted = own.mean(), (own * samples).sum() / samples.sum()
        of_given = (own * torch.tensor(given)).sum() / sum(given)
        for options, expected in [
            ({"merge": "mean"}, mean),
            ({"merge": "weights"}, weighted),
            ({"merge": "weights", "weights": given}, of_given),
            ({"merge": "mixed", "mix": 0.25}, 0.25 * weighted + 0.75 * mean),
            ({"merge": "mixed", "mix": 0.25, "weights": given}, 0.25 * of_given + 0.75 * mean),
        ]:
            model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
            layout = {"servers": servers, "placement": placement}
            strategy, _ = stepping(comm, model, mode="parameters", **layout, **options)
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(comm.rank + 1.0 if comm.rank < workers else 1e6)
            strategy.gradient_scale.divisor((comm.rank + 1) ** 2, 0)
            strategy.on_gradients(0)
            strategy.on_parameters(0)
            torch.testing.assert_close(flat(model), expected.expand(flat(model).shape), msg=f"{options} {layout}")


def updates(workers: int, width: int, *, silent: int | None) -> Tensor:
    """Return updates whose two halves have different outliers, and one update far from all."""
    stack = torch.randn(workers, width, generator=torch.Generator().manual_seed(workers))
    stack[:, : width // 2] *= torch.linspace(0.1, 3, workers)[:, None]
    stack[:, width // 2 :] *= torch.linspace(3, 0.2, workers)[:, None]
    stack[workers - 1] = 1e4
    if silent is not None:
        stack[silent] = 0
    return stack


def robust_aggregates_are_those_of_the_whole_vector(comm: Communicator) -> None:
    """For any number of servers; workers without samples do not count, too few skip the step."""
    for name in ("krum", "median", "trimmed_mean"):
        for servers, placement in layouts(comm):
            workers = workers_of(comm, servers, placement)
            f = 1 if workers >= LEAST[name](1) else 0
            if workers < LEAST[name](f):
                continue
            for silent in (None, 0):
                check_robust(comm, name, f, workers, silent, servers=servers, placement=placement)


def check_robust(
    comm: Communicator, name: str, f: int, workers: int, silent: int | None, *, servers: int, placement: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3))
    strategy, optimizer = stepping(comm, model, aggregate=name, byzantine=f, servers=servers, placement=placement)
    before = flat(model)
    stack = updates(workers, len(before), silent=silent)
    rank = comm.rank
    assert strategy.gradient_scale.divisor(7, 100) == 7
    if rank < workers and rank != silent:
        sizes = [p.numel() for p in model.parameters()]
        for p, gradient in zip(model.parameters(), stack[rank].split(sizes), strict=True):
            p.grad = gradient.view(p.shape).clone()
    strategy.on_gradients(0)
    optimizer.torch.step()
    strategy.on_parameters(0)
    heard = torch.cat([stack[:silent], stack[silent + 1 :]]) if silent is not None else stack
    expected = before - AGGREGATORS[name](heard, f) if len(heard) >= LEAST[name](f) else before
    torch.testing.assert_close(flat(model), expected, msg=f"{name}, {servers} {placement}, silent {silent}")


def krum_of_parts_would_choose_otherwise() -> None:
    """Check an assumption of `robust_aggregates_are_those_of_the_whole_vector`."""
    stack = updates(4, 59, silent=None)
    whole = AGGREGATORS["krum"](stack, 1)
    front, behind = stack.tensor_split(2, 1)
    assert not torch.equal(torch.cat([AGGREGATORS["krum"](part, 1) for part in (front, behind)]), whole)


def bytes_are_those_of_push_and_pull(comm: Communicator) -> None:
    """A worker sends what it does not serve itself; a server sends its part to all other ranks."""
    for servers, placement in layouts(comm):
        model = nn.Linear(12, 5, bias=False)
        strategy, optimizer = stepping(comm, model, servers=servers, placement=placement)
        before = comm.bytes_sent
        model.weight.grad = torch.ones_like(model.weight)
        strategy.on_gradients(0)
        optimizer.torch.step()
        strategy.on_parameters(0)
        first = 0 if placement == "colocated" else comm.size - servers
        elements, serves = [60 // servers] * servers, comm.rank in range(first, first + servers)
        pushed = 4 * (60 + 2 * servers)
        own = 4 * (elements[0] + 2) if serves else 0
        works = comm.rank < workers_of(comm, servers, placement)
        pulled = 4 * elements[0] * (comm.size - 1) if serves else 0
        assert comm.bytes_sent - before == (pushed - own if works else 0) + pulled


def buffers_are_those_of_workers(comm: Communicator) -> None:
    """The mean of running statistics does not contain those of dedicated servers."""
    for mode in ("gradients", "parameters"):
        if comm.size == 1:
            continue
        model = nn.BatchNorm1d(3)
        strategy, _ = stepping(comm, model, mode=mode, placement="dedicated")
        model.running_mean = torch.full((3,), comm.rank + 1.0)
        with strategy.view.agreed():
            seen = torch.stack(comm.all_gather(model.running_mean)).mean(0)
        torch.testing.assert_close(seen, torch.arange(1.0, comm.size).mean().expand(3))


def equal_ranks_count_the_same_however_few_samples_they_have(comm: Communicator) -> None:
    """Rank r has r samples with gradient r each: means over ranks and over samples differ."""
    for shard in ("auto", False):
        for weights, expected in [
            ("samples", sum(r * r for r in range(comm.size)) / max(sum(range(comm.size)), 1)),
            ("equal", sum(range(comm.size)) / max(comm.size - 1, 1)),
        ]:
            model = nn.Linear(2, 1, bias=False)
            strategy, optimizer = stepping(comm, model, "allreduce", weights=weights, shard_optimizer=shard)
            before = flat(model)
            divisor = strategy.gradient_scale.divisor(comm.rank, sum(range(comm.size)))
            strategy.on_backward(0)
            if comm.rank:
                (comm.rank * comm.rank * model.weight.sum() / divisor).backward()
            strategy.on_gradients(0)
            optimizer.torch.step()
            strategy.on_parameters(0)
            torch.testing.assert_close(before - flat(model), torch.full((2,), float(expected)))


def adasum_of(comm: Communicator, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients after Adasum, given this rank's gradients."""
    model = nn.ParameterList(nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in gradients)
    strategy, _ = stepping(comm, model, "allreduce", op="adasum")
    for p, gradient in zip(model, gradients, strict=True):
        p.grad = gradient
    strategy.on_backward(0)
    strategy.on_gradients(0)
    return [p.grad for p in model]


def adasum_is_that_of_the_paper(comm: Communicator) -> None:
    """Orthogonal gradients are added, parallel ones averaged, each tensor on its own."""
    if comm.size & (comm.size - 1):
        return
    axis, ones = torch.eye(4, dtype=torch.float64)[comm.rank], torch.ones(4, dtype=torch.float64)
    noise = torch.randn(comm.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    late = 2 * ones if comm.rank == comm.size - 1 else None
    found = adasum_of(comm, [axis * (comm.rank + 1), ones, noise[comm.rank], late, None])
    summed = torch.zeros(4, dtype=torch.float64)
    summed[: comm.size] = torch.arange(1.0, comm.size + 1)
    for result, expected in zip(found, [summed, ones, paired(list(noise)), 2 * ones], strict=False):
        torch.testing.assert_close(result, expected)
    assert found[4] is None


def paired(parts: list[Tensor]) -> Tensor:
    """Return Adasum as the paper defines it: of each half first, then of the two results."""
    if len(parts) == 1:
        return parts[0]
    a, b = paired(parts[: len(parts) // 2]), paired(parts[len(parts) // 2 :])
    dot = (a * b).sum()
    return (1 - dot / (2 * (a * a).sum())) * a + (1 - dot / (2 * (b * b).sum())) * b


def adasum_trains(comm: Communicator) -> None:
    """Ranks stay bitwise equal, and one rank alone equals plain training."""
    if comm.size & (comm.size - 1):
        return
    result = body.trained(comm, body.configuration(sync={"op": "adasum"}, train={"epochs": 1}))
    every = comm.all_gather(torch.cat([p.flatten() for p in result.values()]))
    assert all(torch.equal(every[0], other) for other in every)
    if comm.size == 1:
        body.assert_close(result, body.trained(comm, body.configuration(train={"epochs": 1})))


BODIES = [
    gradients_equal_one_process,
    halves_stay_close_and_an_overflow_skips_the_step_everywhere,
    parameters_weighted_by_samples_equal_one_process,
    merge_is_that_of_the_formula,
    robust_aggregates_are_those_of_the_whole_vector,
    bytes_are_those_of_push_and_pull,
    buffers_are_those_of_workers,
    equal_ranks_count_the_same_however_few_samples_they_have,
    adasum_is_that_of_the_paper,
    adasum_trains,
]


def gradients_resume(comm: Communicator, folder: Path) -> None:
    servers = {"servers": 2, "placement": "dedicated"} if comm.size > 2 else {}
    replicas.resumed_is_bitwise_equal(comm, folder, {"strategy": "parameter_server", **servers})


def parameters_resume(comm: Communicator, folder: Path) -> None:
    sync = {"strategy": "parameter_server", "mode": "parameters", "merge": "mixed"}
    replicas.resumed_is_bitwise_equal(comm, folder, sync)


RESUMING = [gradients_resume, parameters_resume]
