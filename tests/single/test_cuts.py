"""Rollouts that are cut, and members of a population, on threads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_train.agents.cut import Cut
from hvd_train.agents.order import RolloutOrder
from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.monitor.base import Sink
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import agents, cuts, training
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_slow_worker_is_cut(size: int) -> None:
    threads.run(size, cuts.a_slow_worker_is_cut)


def test_a_worker_ends_once_the_share_is_done_but_not_before_a_quarter_of_its_steps() -> None:
    def last(comm: Communicator) -> list[bool]:
        cut = Cut(comm, 0.6, comm.size)  # three of five
        found = []
        for done in range(4):
            if comm.rank == done:
                cut.announce(7)
            comm.barrier()
            if comm.rank == 4:
                end = time.monotonic() + (0.2 if done < 2 else 10)
                while not cut.ends(7, 4, 16) and time.monotonic() < end:
                    time.sleep(0.001)
                found += [cut.ends(7, 4, 16), cut.ends(7, 3, 16), cut.ends(7, 16, 16), cut.ends(8, 4, 16)]
            comm.barrier()
        cut.close()
        return found

    *_, found = threads.run(5, last)
    assert found == [False] * 8 + [True, False, False, False] * 2


@pytest.mark.parametrize("left", range(1, 17))
def test_what_a_cut_leaves_is_trained_on_in_as_many_batches(left: int) -> None:
    whole = RolloutOrder(range(3), steps=16, planned=16, passes=2)
    short = RolloutOrder(range(3), steps=left, planned=16, passes=2)
    given = {"batch_size": 7, "epoch": 0, "seed": 0}
    (full, size), (some, smaller) = (o.share(torch.zeros(48), 0, 1, **given) for o in (whole, short))
    assert size == 7
    assert sorted(some.tolist()) == sorted(list(range(3 * left)) * 2)
    assert -(-len(some) // smaller) <= -(-len(full) // 7) == 14
    assert smaller == -(-len(some) // 14)


def test_a_run_with_cuts_resumes(tmp_path: Path) -> None:
    def run(comm: Communicator, steps: int, source: Path | None = None) -> Any:
        config = cuts.configuration(comm.size, train={"epochs": None, "steps": steps})
        job = training.trainer(comm, config, checkpoints=tmp_path / "checkpoints")
        if source:
            job.restore(checkpoint.load(source, comm, print))
        job.run()
        return job.progress.step

    assert threads.run(2, lambda comm: run(comm, 11)) == [11, 11]
    assert threads.run(2, lambda comm: run(comm, 21, tmp_path)) == [21, 21]


def test_workers_that_wait_for_nobody_are_not_cut() -> None:
    config = cuts.configuration(2, sync={"strategy": "async_gossip"})
    with pytest.raises(UserError, match=r"data\.cut_at: under 'async_gossip' no worker waits for another"):
        threads.run(2, lambda comm: training.trainer(comm, config))


def test_the_league_lists_the_return_of_every_member_on_all_episodes() -> None:
    """One member walks to its goal, the other away from its own; at the end both play both games."""
    data = {
        "env": "tests.bodies.environments:Walk",
        "envs": 2,
        "episodes": 4,
        "variants": [{"goal": 1.0}, {"goal": -0.5}],
        "variants_by": "worker",
        "max_steps": 20,
    }

    def run(comm: Communicator) -> tuple[list[dict[str, Any]], float, list[int]]:
        sync = {"strategy": "independent", "merge": "greedy"}
        config = agents.configuration(1, data=data, sync=sync, train={"epochs": 20}, optimizer={"lr": 0.05})
        job = training.trainer(comm, config)
        job.run()
        summary = job.strategy.view.summary()
        return summary["league"], float(job.evaluation.metrics["return"]), summary["soup"]  # type: ignore[arg-type]

    (league, final, soup), other = threads.run(2, run)
    assert other[0] == league
    assert league == [{"rank": 0, "score": 0.25}, {"rank": 1, "score": 0.0}]
    assert (final, soup[0]) == (0.25, 0)


class Steps(Sink):
    """Remembers the parameters after each step."""

    def __init__(self) -> None:
        self.job: list[Trainer] = []
        self.parameters: list[dict[str, torch.Tensor]] = []

    def step(self, step: int) -> None:
        self.parameters.append(training.parameters(self.job[0]))


@pytest.mark.parametrize("strategy", ["independent", "federated"])
def test_a_member_learns_from_its_own_experience_only(strategy: str) -> None:
    """Rank 0 equals a run alone until ranks merge, though observations, rewards and advantages are normalised."""

    def run(comm: Communicator) -> dict[str, torch.Tensor]:
        steps = Steps()
        config = agents.configuration(
            1, data={"envs": 2, "batch_size": 8}, agent=agents.NORMALISED, sync={"strategy": strategy}
        )
        job = training.trainer(comm, config, sinks=[steps])
        steps.job.append(job)
        job.run()
        return steps.parameters[-9 if strategy == "independent" else 6]

    expected, (found, _) = threads.run(1, run)[0], threads.run(2, run)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_clients_that_are_in_no_round_yet_have_environments() -> None:
    def run(comm: Communicator) -> int:
        sync = {"strategy": "federated", "fraction": 0.5}
        job = training.trainer(comm, agents.configuration(2, sync=sync, train={"epochs": 4}))
        job.run()
        return job.progress.env_steps

    assert threads.run(2, run) == [4 * agents.COPIES * 16] * 2
