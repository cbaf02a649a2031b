"""Each run is a `ddl run` in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from cli.follow.process import end_with_parent
from cli.tune import gate, marks
from cli.tune.cause import cause
from cli.tune.runner import Run
from hvd_train.config.launch import GATE
from hvd_train.rank import internal


class Processes:
    """Starts runs as `ddl run` with further `words`, such as the options for ssh.

    The output of a run is in the file beside its folder. A run gets SIGTERM if this process dies:
    its ranks then save and end.
    """

    outlives = False

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        self._words = words

    def start(self, run: Run) -> Process:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        marks.await_end(run.folder)
        process = Process(self.argv(run), run.folder.with_suffix(".log"))
        marks.write(run.folder, process.pid)
        return process

    def argv(self, run: Run) -> list[str]:
        """Return the command line of `run`, which a person can paste."""
        variables = {**run.placement.variables, **({GATE: str(run.folder / gate.FILE)} if run.gated else {})}
        return [
            *internal.argv("cli", "run", str(run.file), *run.overrides, "--np", str(run.np), "--quiet"),
            *([] if run.resume == run.folder else ["--output", str(run.folder)]),
            *(["--resume", str(run.resume)] if run.resume else []),
            *(["--hosts", ",".join(map(str, run.placement.hosts))] if run.placement.hosts else []),
            *(["--bind", "none"] if run.placement.variables and (run.np > 1 or run.placement.hosts) else []),
            *(word for name, value in variables.items() for word in ("-x", f"{name}={value}")),
            *self._words,
        ]

    def attach(self, folder: Path) -> None:
        """Return None: a process does not outlive its search."""

    def close(self) -> None:
        """Nothing is kept between runs."""


class Process:
    """A `ddl run` that appends to the file `log`."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self._log = log
        with open(log, "ab") as file:
            self._begin = file.tell()
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def message(self) -> str:
        with open(self._log, "rb") as file:
            file.seek(self._begin)
            said = file.read().decode(errors="replace")
        return cause(said) or f"exit code {self.poll()}"

    def stop(self) -> None:
        if self.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
