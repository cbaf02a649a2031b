"""Each example of an agent learns for a moment, and plays an episode."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from tests.bodies import training as body

FILES = sorted(Path("examples/agents").glob("*.yaml"))
MEMORIES = ("dqn", "sac")
"""Agents whose first epoch is long, since it fills a memory."""


def test_there_are_examples() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    values["data"] |= {"episodes": 1, "steps": min(values["data"]["steps"], 16)}
    values["train"]["env_steps"] = 2 * values["data"]["envs"] * values["data"]["steps"]
    if values["agent"]["name"] in MEMORIES:
        values["agent"]["warmup"] = 0
    job = body.trainer(SingleCommunicator(), resolve(Document(values, str(file))))
    job.run()
    assert job.progress.env_steps == values["train"]["env_steps"]
    assert "return" in job.evaluation.metrics
