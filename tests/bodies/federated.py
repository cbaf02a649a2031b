"""Federated rounds: plain functions of a communicator."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.monitor.base import Record, Sink
from hvd_train.sync.clients import ledger, masks
from hvd_train.sync.clients.accountant import Accountant
from hvd_train.sync.clients.merges import PlainSum, PrivateMean, WeightedMean
from hvd_train.sync.clients.sample import Sample
from hvd_train.sync.clients.secure import FEWEST, SecureSum
from hvd_train.sync.servers.aggregate import AGGREGATORS, LEAST, Aggregator
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body

Combine = Callable[[Tensor, Tensor], Tensor]
"""(updates [n, d], samples [n]) -> the change of the model."""

BATCH, RATE, MOMENTUM = 16, 0.1, 0.9


def configuration(epochs: int, **sync: Any) -> Any:
    """Clients with very unequal data, in float64; rounds reset their momentum."""
    return body.configuration(
        model={"name": "mlp", "hidden": [8], "target": None},
        data={"partition": {"name": "dirichlet", "alpha": 0.3}, "batch_size": BATCH},
        optimizer={"name": "SGD", "lr": RATE, "momentum": MOMENTUM, "weight_decay": None},
        train={"epochs": epochs},
        sync={"fusion_mb": None, "strategy": "federated", **sync},
    )


def flat(job: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in job.model.parameters()]).clone()


def expected(
    comm: Communicator, config: Any, clients: Sequence[Sequence[int]], epochs: int, combine: Combine
) -> Tensor:
    """Return the model after a round of `epochs` epochs with each of `clients`, in plain torch."""
    job = body.trainer(comm, config)
    for tensor in job.model.state_dict().values():
        comm.broadcast_(tensor)
    model = flat(job)
    for number, sample in enumerate(clients):
        trained = [local(job, model, k, comm.size, range(number * epochs, (number + 1) * epochs)) for k in sample]
        updates, samples = zip(*trained, strict=True)
        model = model + combine(torch.stack(updates), torch.tensor(samples, dtype=torch.float64))
    return model


def local(job: Any, start: Tensor, client: int, clients: int, epochs: Sequence[int]) -> tuple[Tensor, int]:
    """Return the update of `client` from `start`, and the number of its samples."""
    torch.nn.utils.vector_to_parameters(start.clone(), job.model.parameters())
    optimizer = torch.optim.SGD(job.model.parameters(), lr=RATE, momentum=MOMENTUM)
    deal = job.sampler.partitioner.indices
    indices = [deal(job.sampler.labels, client, clients, epoch=e, seed=job.sampler.seed) for e in epochs]
    for batch in (b for own in indices for b in own.split(BATCH)):
        x, y = job.data.train.batch(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(job.model(x.double()), y).backward()
        optimizer.step()
    return flat(job) - start, len(indices[0])


def weighted(updates: Tensor, samples: Tensor) -> Tensor:
    return (samples / samples.sum()) @ updates


def a_round_is_the_mean_weighted_by_samples(comm: Communicator) -> None:
    """Two rounds of two epochs with half of the clients differ from the plain mean."""
    config = configuration(4, fraction=0.5, local_epochs=2)
    sample = Sample(comm.size, 0.5, config.seed)
    clients = [sample.of(0), sample.of(1)]
    assert len(clients[0]) == max(1, comm.size // 2)
    right = expected(comm, config, clients, 2, weighted)
    job = body.trainer(comm, config)
    job.run()
    torch.testing.assert_close(flat(job), right, rtol=1e-9, atol=1e-11)
    if comm.size > 2:
        plain = expected(comm, config, clients, 2, lambda updates, samples: updates.mean(0))
        assert float((flat(job) - plain).norm()) > 1e-3
    assert all(torch.equal(flat(job), other) for other in comm.all_gather(flat(job)))


def aggregators_see_single_updates(comm: Communicator) -> None:
    byzantine = int(comm.size > 3)
    for name in ("krum", "median", "trimmed_mean"):
        if comm.size >= LEAST[name](byzantine):
            config = configuration(1, aggregate=name, byzantine=byzantine)
            combine = partial(without_samples, AGGREGATORS[name], byzantine)
            right = expected(comm, config, [range(comm.size)], 1, combine)
            job = body.trainer(comm, config)
            job.run()
            torch.testing.assert_close(flat(job), right, rtol=1e-9, atol=1e-11, msg=name)


def without_samples(aggregate: Aggregator, byzantine: int, updates: Tensor, samples: Tensor) -> Tensor:
    return aggregate(updates, byzantine)


def updates_are_clipped(comm: Communicator) -> None:
    def clipped(updates: Tensor, samples: Tensor) -> Tensor:
        assert (updates.norm(dim=1) > 0.05).all()
        return weighted(updates * 0.05 / updates.norm(dim=1, keepdim=True), samples)

    config = configuration(1, clip=0.05)
    right = expected(comm, config, [range(comm.size)], 1, clipped)
    job = body.trainer(comm, config)
    job.run()
    torch.testing.assert_close(flat(job), right, rtol=1e-9, atol=1e-11)


def masked_rounds_are_plain_rounds(comm: Communicator) -> None:
    """Results equal up to fixed point, and what ranks send is independent of their updates."""
    config = configuration(2)
    if comm.size < FEWEST:
        return
    plain = body.trainer(comm, config)
    plain.run()
    spy = Spy(comm)
    masked = body.trainer(spy, configuration(2, secure=True))  # type: ignore[arg-type]
    updates: list[Tensor] = []
    merge = masked.strategy._merge  # type: ignore[attr-defined]
    masked.strategy._merge = lambda u, n, c: (updates.append(torch.cat([u * n, u.new_tensor([n])])), merge(u, n, c))[1]  # type: ignore[attr-defined]
    masked.run()
    torch.testing.assert_close(flat(masked), flat(plain), rtol=1e-6, atol=1e-7)
    bulky = [x for x in spy.sent if x.numel() >= len(updates[0])]
    assert sum(x.dtype == torch.int64 for x in bulky) == len(updates) == 2
    for secret in map(masks.encode, updates):
        for sent in (x for x in bulky if x.dtype == torch.int64):
            assert not torch.equal(sent, secret)
            assert uniform(sent), "what left the client is not uniform"
        assert not uniform(secret)


def floats_travel_only_before_training(comm: Communicator) -> None:
    """After the first broadcast, masked integers are the only tensors of the model's size."""
    if comm.size < FEWEST:
        return
    spy = Spy(comm)
    job = body.trainer(spy, configuration(1, secure=True))  # type: ignore[arg-type]
    start = job.strategy.start
    job.strategy.start = lambda model: (start(model), spy.sent.clear())[0]  # type: ignore[method-assign]
    job.run()
    size = len(flat(job))
    assert not [x for x in spy.sent if x.is_floating_point() and x.numel() > 8]
    assert [x.numel() for x in spy.sent if x.dtype == torch.int64 and x.numel() > size] == [size + 1]


def uniform(x: Tensor, least: float = 1e-7) -> bool:
    """Return True if the bytes of `x` look uniform: chi-square over 256 values, p > `least`."""
    from scipy.stats import chisquare

    counts = torch.bincount(x.contiguous().view(torch.uint8).long(), minlength=256)
    return bool(chisquare(counts.numpy()).pvalue > least)


class Spy:
    """A communicator that records what this rank sends; a broadcast counts on its root."""

    def __init__(self, comm: Communicator) -> None:
        self._comm, self.sent = comm, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def all_reduce_(self, x: Tensor, op: Any = "mean") -> None:
        self.sent.append(x.clone())
        self._comm.all_reduce_(x, op)

    def all_reduce_async_(self, x: Tensor, op: Any = "mean") -> Any:
        self.sent.append(x.clone())
        return self._comm.all_reduce_async_(x, op)

    def reduce_scatter(self, x: Tensor, op: Any = "mean") -> Tensor:
        self.sent.append(x.clone())
        return self._comm.reduce_scatter(x, op)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        self.sent.append(x.clone())
        return self._comm.all_gather(x)

    def broadcast_(self, x: Tensor, root: int = 0) -> None:
        if self._comm.rank == root and x.dtype != torch.int64:
            self.sent.append(x.clone())
        self._comm.broadcast_(x, root)

    def all_to_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        self.sent += [x.clone() for x in xs]
        return self._comm.all_to_all(xs)

    def exchange(self, x: Tensor, dst: int, src: int) -> Tensor:
        self.sent.append(x.clone())
        return self._comm.exchange(x, dst, src)


def curious_ranks_learn_sums_of_two_at_least(comm: Communicator) -> None:
    """Two colluding ranks learn no sum of fewer than two vectors, for every set of clients.

    They see all that any rank sends, which is more than collectives return. The test tries every
    sum of single contributions, without the masks and vectors of the colluding ranks.
    """
    if comm.size < FEWEST:
        return
    numel = 2000
    vectors = [masks.encode(torch.full((numel,), float(r + 1), dtype=torch.float64)) for r in range(comm.size)]
    for counting in (set(c) for n in range(comm.size + 1) for c in combinations(range(comm.size), n)):
        colluding = {0, comm.size - 1} if len(counting) > FEWEST else {0}
        spy, drawn = Spy(comm), masks.draw()
        add = SecureSum(spy, FEWEST)  # type: ignore[arg-type]
        add._draw = lambda: drawn  # noqa: B023
        mine = masks.decode(vectors[comm.rank]), comm.rank in counting, range(comm.size)
        if len(counting) < FEWEST:
            with pytest.raises(UserError, match=f"{len(counting)} of {comm.size} clients have an update that counts"):
                add(*mine)
            assert all(x.numel() <= masks.SECRET + 1 for x in spy.sent), "something of a vector has left the rank"
            continue
        total = masks.encode(add(*mine))
        assert torch.equal(total, sum((vectors[r] for r in counting), torch.zeros(numel, dtype=torch.int64)))
        keys, masked = spy.sent
        assert keys.tolist() == [comm.rank in counting, *masks.advertise(drawn)]
        secrets = [x.numpy().tobytes() for x in comm.all_gather(torch.tensor(list(drawn), dtype=torch.uint8))]
        advertised = {r: masks.advertise(secret) for r, secret in enumerate(secrets)}
        shown = dict(enumerate(comm.all_gather(masked)))
        for r in colluding:
            known = {r: advertised[r] for r in range(comm.size) if r not in colluding}
            for other in known:
                shown[other] += masks.mask(torch.zeros_like(masked), secrets[r], r, {other: advertised[other]})
        others = [r for r in range(comm.size) if r not in colluding]
        for some in (set(c) for n in range(1, len(others)) for c in combinations(others, n)):
            assert uniform(torch.stack([shown[r] for r in some]).sum(0)), f"{colluding} read a sum of {some}"
        assert len(counting - colluding) >= 2
        left = sum((vectors[r] for r in counting - colluding), torch.zeros(numel, dtype=torch.int64))
        assert torch.equal(torch.stack([shown[r] for r in others]).sum(0), left)


def too_few_updates_end_the_run_before_any_leaves(comm: Communicator) -> None:
    """With one or two clients with samples, every rank raises the same error."""
    if comm.size < FEWEST:
        return
    for few in (1, 2):
        spy = Spy(comm)
        job = body.trainer(spy, configuration(1, secure=True))  # type: ignore[arg-type]
        start, merge = job.strategy.start, job.strategy._merge  # type: ignore[attr-defined]
        job.strategy.start = lambda model: (start(model), spy.sent.clear())[0]  # type: ignore[method-assign]  # noqa: B023
        job.strategy._merge = lambda u, n, c: merge(u, n if comm.rank < few else 0, c)  # type: ignore[attr-defined]  # noqa: B023
        with pytest.raises(UserError, match=f"{few} of {comm.size} clients have an update that counts"):
            job.run()
        assert not [x for x in spy.sent if x.numel() >= len(flat(job))]
        comm.barrier()


def an_update_that_is_not_finite_drops_out(comm: Communicator) -> None:
    """Infinite updates and updates too large for fixed point do not count."""
    if comm.size < 3:
        return
    bad = {0: math.inf, 1: 2.0**61 / masks.SCALE}
    for rank, value in bad.items():
        others = [float(r) for r in range(comm.size) if r != rank]
        weights = [r + 1 for r in range(comm.size) if r != rank]
        right = sum(x * n for x, n in zip(others, weights, strict=True)) / sum(weights)
        for add in [PlainSum(comm), SecureSum(comm, min(FEWEST, comm.size - 1))][rank:]:
            own = torch.full((3,), value if comm.rank == rank else float(comm.rank), dtype=torch.float64)
            result = WeightedMean(add)(own, comm.rank + 1, range(comm.size))
            torch.testing.assert_close(result, torch.full((3,), right, dtype=torch.float64))


def noise_has_the_promised_variance(comm: Communicator) -> None:
    """The noise is equal on every rank and different every time."""
    numel, deviation = 40_000, 3.0
    update = torch.full((numel,), float(comm.rank), dtype=torch.float64)
    adders = [PlainSum(comm), *([SecureSum(comm, FEWEST)] if comm.size >= FEWEST else [])]
    for add in adders:
        merge = PrivateMean(add, comm.size, deviation, expected=1.0)
        # Rank 0 does not count: it has no samples.
        first, second = (merge(update, comm.rank, range(comm.size)) for _ in range(2))
        noise = first - sum(range(comm.size))
        # Six standard deviations of the variance, sqrt(2 / numel) each.
        assert abs(float(noise.var()) / deviation**2 - 1) < 6 * math.sqrt(2 / numel)
        assert abs(float(noise.mean())) < 6 * deviation / math.sqrt(numel)
        assert not torch.equal(first, second)
        assert all(torch.equal(first, other) for other in comm.all_gather(first))


class Log(Sink):
    def __init__(self) -> None:
        self.records: list[Record] = []

        self.steps: list[Record] = []

    def evaluation(self, record: Record) -> None:
        self.records.append(record)

    def train(self, record: Record) -> None:
        self.steps.append(record)


def every_evaluation_records_epsilon(comm: Communicator) -> None:
    """It is that of the rounds so far. The sample's seed is secret and equal on every rank."""
    log = Log()
    config = configuration(3, noise=2.0, clip=1.0, fraction=0.5, delta=1e-3, local_epochs=2)
    job = body.trainer(comm, config, sinks=[log] if comm.rank == 0 else [])
    job.run()
    seeds = {int(s) for s in comm.all_gather(torch.tensor(job.strategy.members.sample.seed >> 1))}  # type: ignore[attr-defined]
    assert len(seeds) == 1
    assert seeds != {config.seed}
    if comm.rank == 0:
        for name, fraction in {"epsilon": 0.5, "epsilon_ranks": 1.0}.items():
            right = [epsilon_of(2.0, fraction, rounds) for rounds in (0, 1, 1, 2)]
            assert [record[name] for record in log.records] == right
        assert job.strategy.view.summary() == {
            "rounds": 2,
            "rounds_released": 2,
            "epsilon": epsilon_of(2.0, 0.5, 2),
            "epsilon_ranks": epsilon_of(2.0, 1.0, 2),
            "delta": 1e-3,
        }
        assert log.records[-1]["epsilon_ranks"] > log.records[-1]["epsilon"] > 0
    assert all(torch.equal(flat(job), other) for other in comm.all_gather(flat(job)))


def epsilon_of(noise: float, fraction: float, rounds: int) -> float:
    accountant = Accountant()
    for _ in range(rounds):
        accountant.add(noise, fraction)
    return accountant.epsilon(1e-3)


def confidential_checkpoints_hold_no_client(comm: Communicator, folder: Path) -> None:
    """Within the second round, the saved model is bitwise the first round's, without rank state."""
    if comm.size < FEWEST:
        return
    first = body.trainer(comm, configuration(2, secure=True, local_epochs=2))
    first.run()
    job = body.trainer(comm, configuration(3, secure=True, local_epochs=2), checkpoints=folder / "checkpoints")
    job.strategy.finish = lambda: None  # type: ignore[method-assign]
    job.run()
    inside = checkpoint.load(folder, comm, print)
    assert {name.partition(".")[0] for name in inside.mine} == {"rng"}
    assert inside.state["scaler"] == {"dict": []}
    assert not inside.optimizer
    for name, value in body.parameters(first).items():
        assert torch.equal(inside.model[name], value), name
    assert float((flat(job) - flat(first)).norm()) > 1e-3
    again = body.trainer(comm, configuration(4, secure=True, local_epochs=2))
    again.restore(inside)
    again.run()
    assert again.strategy.view.summary() == {"rounds": 2}


def training_losses_of_confidential_runs_are_not_recorded(comm: Communicator) -> None:
    """A mean over few clients reveals them, and neither noise nor masks cover it."""
    masked = [{"secure": True}] if comm.size >= FEWEST else []
    for sync in (*masked, {"noise": 1.0, "clip": 1.0}, {}):
        log = Log()
        config = configuration(1, **sync)
        config.train.log_every = 1
        body.trainer(comm, config, sinks=[log] if comm.rank == 0 else []).run()
        if comm.rank == 0:
            assert log.steps
            assert all(("loss" in record) == (not sync) for record in log.steps)


class Diary(nn.Module):
    """Sums its inputs in a buffer that is not a running statistic."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().sum(0).abs().mul(100).to(self.seen.dtype)
        out: Tensor = self.layer(x)
        return out


def diary(integers: bool = False) -> nn.Module:
    return Diary(torch.int64 if integers else torch.float32)


def buffers_of_a_client_are_not_saved(comm: Communicator, folder: Path) -> None:
    """Floating-point buffers are saved as of the last round; integers that change are refused."""

    def run(integers: bool, where: Path) -> Trainer:
        config = body.configuration(
            model={"target": "tests.bodies.federated:diary", "args": {"integers": integers}},
            data={"partition": "contiguous"},
            train={"steps": 2, "epochs": None, "precision": "fp32", "eval_every": 1000},
            checkpoint={"every": 1},
            sync={"fusion_mb": None, "strategy": "federated", "clip": 1.0, "noise": 1.0},
        )
        job = body.trainer(comm, config, checkpoints=where / "checkpoints")
        job.strategy.finish = lambda: None  # type: ignore[method-assign]
        job.run()
        return job

    job = run(False, folder / "floats")
    assert float(job.model.get_buffer("seen").abs().min()) > 0
    inside = checkpoint.load(folder / "floats", comm, print)
    assert torch.equal(inside.model["seen"], torch.zeros(6))
    assert not [name for name in inside.mine if "seen" in name]
    with pytest.raises(UserError, match="buffer 'seen' changes while a client trains"):
        run(True, folder / "integers")
    assert not list((folder / "integers").glob("checkpoints/step-*"))


def rounds_that_are_run_again_count_again(comm: Communicator, folder: Path) -> None:
    """A run fails in round 4, after its sum was released, and resumes from round 2."""

    def job_of(epochs: int, **sync: Any) -> Trainer:
        config = configuration(epochs, noise=2.0, clip=1.0, fraction=0.5, delta=1e-3, **sync)
        return body.trainer(comm, config, checkpoints=folder / "checkpoints", source=folder)

    first = job_of(2)
    first.run()
    assert released(comm, folder) == 2
    saved = checkpoint.load(folder, comm, print)
    again = job_of(4)
    again.restore(saved)
    again.checkpoints = None
    take = again.strategy._merge  # type: ignore[attr-defined]

    def dies(*arguments: Any) -> Any:
        assert released(comm, folder) == again.strategy._replicas.averages + 1, (
            "the sum is released before the round is on disk"
        )  # type: ignore[attr-defined]
        comm.barrier()
        change = take(*arguments)
        if again.strategy._replicas.averages == 3:  # type: ignore[attr-defined]
            raise ConnectionError("killed")
        return change

    again.strategy._merge = dies  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError, match="killed"):
        again.run()
    comm.barrier()
    assert released(comm, folder) == 4
    last = job_of(4)
    last.restore(saved)
    last.run()
    assert last.strategy.view.summary() == {
        "rounds": 4,
        "rounds_released": 6,
        "epsilon": epsilon_of(2.0, 0.5, 6),
        "epsilon_ranks": epsilon_of(2.0, 1.0, 6),
        "delta": 1e-3,
    }
    assert sum(count for *_, count in last.strategy.view.state_dict()["spent"]) == 6
    comm.barrier()


def a_round_that_is_over_stays_over_when_the_run_goes_on(comm: Communicator, folder: Path) -> None:
    """The resumed run draws another sample, with more or fewer samples in the epoch."""
    if comm.size == 1:
        return
    nobody, everybody = (Sample(comm.size, q, 1, poisson=True) for q in (1e-12, 1.0))
    for first, second in [(nobody, everybody), (everybody, nobody)]:
        job = body.trainer(comm, configuration(1, noise=1.0, clip=1.0), checkpoints=folder / "checkpoints")
        job.strategy.members.sample = first  # type: ignore[attr-defined]
        job.run()
        again = body.trainer(comm, configuration(2, noise=1.0, clip=1.0))
        again.strategy.members.sample = second  # type: ignore[attr-defined]
        again.restore(checkpoint.load(folder, comm, print))
        again.run()
        assert again.strategy.view.summary()["rounds"] == 2
        assert again.progress.epoch == 2
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(folder / "checkpoints")
        comm.barrier()


def released(comm: Communicator, folder: Path) -> int:
    return sum(map(ledger.rounds, ledger.read(folder, None).values()))


def normed_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def resuming_configuration(steps: int, every: int = 1, **sync: Any) -> Any:
    return body.configuration(
        model={"target": "tests.bodies.federated:normed_model"},
        data={"partition": {"name": "dirichlet", "alpha": 3.0}},
        train={"steps": steps, "epochs": None, "precision": "fp32"},
        optimizer={"name": "AdamW", "lr": 0.01, "momentum": None},
        checkpoint={"every": every},
        sync={"fusion_mb": None, "strategy": "federated", "fraction": 0.75, **sync},
    )


def resumed(comm: Communicator, folder: Path, steps: int, **sync: Any) -> None:
    """A run that stops after `steps` and resumes is bitwise equal to a run that never stops."""

    def run(length: int, checkpoints: Path | None = None, start: checkpoint.Snapshot | None = None) -> Trainer:
        job = body.trainer(comm, resuming_configuration(length, steps, **sync), checkpoints=checkpoints)
        if start:
            job.restore(start)
        if checkpoints:
            job.strategy.finish = lambda: None  # type: ignore[method-assign]
        job.run()
        return job

    through = run(steps + 6)
    run(steps, folder / "checkpoints")
    again = run(steps + 6, start=checkpoint.load(folder, comm, print))
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]) or not value.is_floating_point(), name
    assert again.strategy.view.summary()["rounds"] == through.strategy.view.summary()["rounds"] > 0


def running_statistics_are_merged_like_parameters(comm: Communicator) -> None:
    job = body.trainer(comm, resuming_configuration(steps_of_first_epoch(comm), 1000, fraction=1.0))
    seen: list[tuple[Tensor, int]] = []
    end_round = job.strategy._round_  # type: ignore[attr-defined]

    def recorded() -> None:
        seen.append((job.model[1].running_mean.double(), job.strategy._position.samples))  # type: ignore[attr-defined, index]
        end_round()

    job.strategy._round_ = recorded  # type: ignore[attr-defined]
    job.run()
    means, samples = (torch.stack(comm.all_gather(torch.as_tensor(x))) for x in seen[0])
    right = weighted(means, samples.double())
    torch.testing.assert_close(job.model[1].running_mean.double(), right, rtol=1e-5, atol=1e-6)  # type: ignore[index]


def steps_of_first_epoch(comm: Communicator) -> int:
    return body.trainer(comm, resuming_configuration(1)).sampler.epoch(0).steps


def resumes_between_rounds(comm: Communicator, folder: Path) -> None:
    """An epoch is a round."""
    resumed(comm, folder, steps_of_first_epoch(comm))


def resumes_inside_a_round(comm: Communicator, folder: Path) -> None:
    """The run stops in the second epoch of three."""
    resumed(comm, folder, steps_of_first_epoch(comm) + 2, local_epochs=3)


def a_round_that_is_cut_short_is_in_the_last_checkpoint(comm: Communicator, folder: Path) -> None:
    """The last step had been saved and evaluated before the round ended."""
    log = Log()
    config = body.configuration(
        train={"steps": 2, "epochs": None, "eval_every": 1},
        checkpoint={"every": 1},
        sync={"fusion_mb": None, "strategy": "federated", "local_epochs": 2},
    )
    job = body.trainer(comm, config, checkpoints=folder / "checkpoints", sinks=[log])
    job.run()
    saved = checkpoint.load(folder, comm, print)
    for name, value in body.parameters(job).items():
        assert torch.equal(saved.model[name], value), name
    before, again, after = (record["loss"] for record in log.records)
    assert before == again != after
    assert job.strategy.view.summary()["rounds"] == 1


BODIES = [
    a_round_is_the_mean_weighted_by_samples,
    aggregators_see_single_updates,
    updates_are_clipped,
    running_statistics_are_merged_like_parameters,
    noise_has_the_promised_variance,
    training_losses_of_confidential_runs_are_not_recorded,
    an_update_that_is_not_finite_drops_out,
]
MASKED = [
    masked_rounds_are_plain_rounds,
    floats_travel_only_before_training,
    curious_ranks_learn_sums_of_two_at_least,
    too_few_updates_end_the_run_before_any_leaves,
]
ON_DISK = [
    a_round_that_is_over_stays_over_when_the_run_goes_on,
    rounds_that_are_run_again_count_again,
    buffers_of_a_client_are_not_saved,
    confidential_checkpoints_hold_no_client,
    resumes_between_rounds,
    resumes_inside_a_round,
    a_round_that_is_cut_short_is_in_the_last_checkpoint,
]
