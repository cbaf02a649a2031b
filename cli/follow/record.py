"""`command.txt` and `ranks.json` in the run folder of a job that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from cli.follow import ranks, reap
from cli.follow.guard import Guards
from cli.launch.job import Command
from hvd_train.rank import events


class RunRecord:
    """Writes both files when rank 0 reports the run folder. `close` removes `ranks.json`.

    If a command that was killed left `ranks.json`, remove what its launcher may have left too.
    """

    def __init__(self, command: Command, guards: Guards, launcher: int) -> None:
        self._command = command
        self._guards = guards
        self._launcher = launcher
        self._folder: Path | None = None

    def open(self, folder: Path) -> None:
        """Write to `folder` from here on, if this machine has it."""
        if folder.is_dir():
            self._folder = folder
            _remove_files_of_killed(folder)
            (folder / "command.txt").write_text(f"{self._command}\n", encoding="utf-8")

    def write_ranks(self, started: Iterable[Mapping[str, Any]]) -> None:
        """Write host and process of each rank, by the events with which ranks started."""
        if self._folder is None:
            return
        names = self._guards.names
        found = ({"rank": e["rank"], "pid": e["pid"], "host": names.get(e["machine"], e["host"])} for e in started)
        ranks.write(self._folder, found, self._launcher, self._guards.client.args)

    def close(self) -> None:
        if self._folder is not None:
            ranks.remove(self._folder)
            self._folder = None


def _remove_files_of_killed(folder: Path) -> None:
    """Remove the files of the launcher that `ranks.json` names, if it ran on this machine and has ended.

    A launcher removes them itself, but not always when its command is killed.
    """
    for launcher in ranks.launchers(folder):
        if launcher["machine"] == events.machine() and not psutil.pid_exists(launcher["pid"]):
            reap.remove_folders(launcher["pid"])
            reap.remove_job_files(launcher["pid"])
