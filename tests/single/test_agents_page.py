"""The agent of docs/agents.md is an agent: one file, checked options, and N ranks that equal one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from tests.bodies import agents, training
from tests.engines import threads
from tests.integration.ddl import ROOT


def test_the_agent_of_the_page_learns_and_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "policy_gradient.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    agent = {"name": None, "target": "policy_gradient:create", "gamma": 0.98, "passes": None, "lam": None}

    def sections(**more: object) -> dict[str, object]:
        return {"model": {"name": "mlp", "hidden": [16]}, "agent": {**agent, **more}, "optimizer": {"lr": 0.02}}

    job = training.trainer(SingleCommunicator(), agents.configuration(1, **sections(), train={"epochs": 40}))
    job.run()
    assert job.evaluation.metrics["return"] > 60, "a random policy has 22"  # type: ignore[operator]
    alone = training.trained(SingleCommunicator(), agents.configuration(1, **sections()))
    for found in threads.run(2, lambda comm: training.trained(comm, agents.configuration(2, **sections()))):
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-12, msg=name)
    with pytest.raises(UserError, match=r"agent.gama: unknown key; did you mean 'gamma'"):
        agents.configuration(1, **sections(gama=1))
