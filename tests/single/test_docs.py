"""What the documentation shows is true of the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from hvd_train import plugins
from hvd_train.comm import threads
from hvd_train.errors import ExitCode
from tests.bodies import training as body

ROOT = Path(__file__).parents[2]


def test_the_strategy_of_the_architecture_page_is_added_by_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    file = ROOT / "hvd_train" / "sync" / "every_other.py"
    file.write_text(source)
    try:
        assert "every_other" in plugins.names("hvd_train.sync")
        config = body.configuration(sync={"strategy": "every_other", "period": 3}, train={"steps": 2, "epochs": None})
        first, second = threads.run(2, lambda comm: body.trained(comm, config))
        assert not torch.equal(first["last.weight"], second["last.weight"]), "the second step was local"
    finally:
        file.unlink()
        sys.modules.pop("hvd_train.sync.every_other", None)


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}
