"""Agents in the trainer: on threads and on one rank; `tests/parallel/test_agents.py` uses mpirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.monitor.base import Record
from hvd_train.training import checkpoint
from tests.bodies import agents as body
from tests.bodies import training
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd"])
def test_resumed_is_bitwise_equal(tmp_path: Path, strategy: str) -> None:
    sections = {"sync": {"strategy": strategy}, "agent": body.NORMALISED}
    threads.run(2, lambda comm: body.resumed_is_bitwise_equal(comm, tmp_path, **sections))


def test_another_number_of_ranks_goes_on_with_the_steps_that_were_counted(tmp_path: Path) -> None:
    def config(size: int, env_steps: int) -> Any:
        return body.configuration(size, train={"epochs": None, "env_steps": env_steps})

    threads.run(2, lambda comm: training.trainer(comm, config(2, 256), checkpoints=tmp_path / "checkpoints").run())
    warnings: list[str] = []
    job = training.trainer(SingleCommunicator(), config(1, 512))
    job.restore(checkpoint.load(tmp_path, SingleCommunicator(), print), warnings.append)
    job.run()
    assert job.progress.env_steps == 512
    assert any("experience is reset" in text or "experience are reset" in text for text in warnings), warnings


def test_evaluations_follow_the_steps_of_environments_and_are_the_same_for_any_number_of_ranks() -> None:
    def returns(comm: Communicator) -> list[Any]:
        log = training.Log()
        train = {"epochs": None, "env_steps": 1024, "eval_env_steps": 256}
        training.trainer(comm, body.configuration(comm.size, train=train), sinks=[log]).run()
        return [(record["env_steps"], record["return"], record["episode_length"]) for record in log.evaluated]

    alone = threads.run(1, returns)[0]
    assert [steps for steps, _, _ in alone] == [256, 512, 768, 1024]
    assert alone[0][1] == alone[0][2], "a return of CartPole is the length of the episode"
    for of_rank in threads.run(2, returns):
        assert of_rank == alone


def test_records_have_the_figures_of_the_agent_over_all_ranks() -> None:
    def figures(comm: Communicator) -> Record:
        log = training.Log()
        training.trainer(comm, body.configuration(comm.size, train={"epochs": 3}), sinks=[log]).run()
        return {name: value for record in log.trained for name, value in record.items()}

    alone, (first, second) = threads.run(1, figures)[0], threads.run(2, figures)
    for name in ("kl", "clip_share", "entropy", "value_error", "episode_return", "episode_length"):
        assert first[name] == second[name] == pytest.approx(alone[name], abs=1e-9), name
    assert 0 < alone["entropy"] < 0.7
    assert 0 <= alone["clip_share"] <= 1
    assert alone["kl"] >= 0


@pytest.mark.parametrize(
    "changed",
    [{"data": {"envs": 4}}, {"data": {"steps": 8}}, {"agent": {"name": "a2c", "passes": None}}],
    ids=["fewer environments", "shorter rollouts", "another agent"],
)
def test_a_resumed_run_of_another_kind_begins_with_new_experience(tmp_path: Path, changed: dict[str, Any]) -> None:
    alone = SingleCommunicator()
    training.trainer(alone, body.configuration(1, train={"epochs": 2}), checkpoints=tmp_path / "checkpoints").run()
    job = training.trainer(alone, body.configuration(1, train={"epochs": 4}, **changed))
    warnings: list[str] = []
    job.restore(checkpoint.load(tmp_path, alone, print), warnings.append)
    job.run()
    assert job.progress.epoch == 4
    assert any("experience" in text for text in warnings), warnings


REFUSED = {
    "agent: is missing": {"agent": None},
    "agent: it learns in environments": {
        "data": {"name": "digits", "env": None, "envs": None, "steps": None, "episodes": None}
    },
    "train.loss: it is for samples": {"train": {"loss": {"name": "mse"}}},
    "data.partition: it is for samples": {"data": {"partition": {"name": "random"}}},
    "parallel.pipeline: it is for samples": {"parallel": {"pipeline": 2}},
    "model: its outputs for one observation are": {
        "model": {"target": "torch.nn:Flatten", "name": None, "hidden": None}
    },
    "train.env_steps: there are no environments": {
        "agent": None,
        "data": {"name": "digits", "env": None, "envs": None, "steps": None, "episodes": None},
        "train": {"env_steps": 5, "epochs": None},
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_fit_an_agent_is_refused(sentence: str) -> None:
    sections: dict[str, Any] = dict(REFUSED[sentence])
    missing = sections.get("agent", ...) is None
    config = body.configuration(1, **{name: part for name, part in sections.items() if part is not None})
    if missing:
        config = config.model_copy(update={"agent": None})
    with pytest.raises(UserError, match=f"^{sentence}"):
        training.trainer(SingleCommunicator(), config)
