"""A user at the login host of a SLURM."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train.rank import internal
from tests.cluster.hosts import Done, wait_until
from tests.cluster.slurm import Slurm
from tests.integration.ddl import ROOT

SECONDS = 120


@dataclass
class Site:
    """A user at a login host of `slurm`, in a folder with a space in its name."""

    slurm: Slurm
    home: Path

    def ddl(self, *arguments: str | Path, timeout: float = SECONDS) -> Done:
        return self.run(*internal.argv("cli"), *arguments, timeout=timeout)

    def run(self, *argv: str | Path, timeout: float = SECONDS) -> Done:
        return self.slurm.run(["env", f"--chdir={self.home}", *argv], timeout, env=self.environment)

    def submit(self, folder: str, *arguments: str | Path) -> str:
        """Submit a job and return its number."""
        done = self.ddl("submit", "--output", folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stands(self, folder: str) -> tuple[str, str, int | None, str]:
        """Return state, cause and exit code of `ddl status`, and the end in `ddl results`."""
        (row,) = json.loads(self.ddl("status", folder, "--json").stdout)
        (result,) = json.loads(self.ddl("results", folder, "--json").stdout)
        return row["state"], row["why"], row["exit code"], result["ended"]

    def attempts(self, folder: str) -> list[dict[str, Any]]:
        path = self.home / folder / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, folder: str, attempts: int = 1) -> list[dict[str, Any]]:
        """Wait for `count` attempts and return how they ended."""
        self.wait_until(folder, lambda: len(self.attempts(folder)) >= attempts, f"attempt {attempts}")
        return self.attempts(folder)

    def wait_until(self, folder: str, true: Callable[[], bool], what: str) -> None:
        try:
            wait_until(true, f"{what} of {folder}", SECONDS)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(folder)}") from None

    def log(self, folder: str) -> str:
        return "".join(path.read_text() for path in sorted((self.home / folder).glob("slurm-*.log")))

    @property
    def environment(self) -> dict[str, str]:
        return {"XDG_CONFIG_HOME": str(self.home / "config"), "PYTHONPATH": str(ROOT)}
