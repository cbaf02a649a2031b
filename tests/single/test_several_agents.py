"""Examples with several agents and with a population, cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hvd_train.comm.communicator import Communicator
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.training.loop import Trainer
from tests.bodies import training
from tests.engines import threads

FOLDER = Path(__file__).parents[2] / "examples" / "agents"


def run(name: str, ranks: int, **train: Any) -> Trainer:
    """Return the trainer of rank 0 after a run of the example on threads."""
    values = yaml.safe_load((FOLDER / name).read_text())
    config = resolve(Document({**values, "train": {**values["train"], **train}}, name))

    def on_rank(comm: Communicator) -> Trainer:
        job = training.trainer(comm, config)
        job.run()
        return job

    return threads.run(ranks, on_rank)[0]


def test_two_agents_learn_to_meet() -> None:
    hardly = run("rendezvous.yaml", 1, env_steps=1, eval_env_steps=1)
    assert hardly.evaluation.metrics["return"] < 7  # type: ignore[operator]
    assert run("rendezvous.yaml", 1, env_steps=5000).evaluation.metrics["return"] > 9  # type: ignore[operator]


def test_a_population_has_a_league() -> None:
    job = run("population.yaml", 2, env_steps=1024)
    league = job.strategy.view.summary()["league"]
    assert {entry["rank"] for entry in league} == {0, 1}
    assert all(entry["score"] > 5 for entry in league)
