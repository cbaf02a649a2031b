"""What the documentation shows is true of the code."""

from __future__ import annotations

import re
from pathlib import Path

from hvd_train.errors import ExitCode

ROOT = Path(__file__).parents[2]


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}
