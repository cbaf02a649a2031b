"""Run a command that starts ranks: pass their output on, obey signals, and say how it ended.

Exit code 0 of a launcher proves nothing (a lost daemon, N worlds of one rank): success is a word from every rank.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from cli.blame import killed
from cli.launchers.base import Command
from hvd_train import events
from hvd_train.errors import ExitCode

GRACE = 4.0
"""Seconds a launcher has to end a job in which a rank failed, or that was told to end."""


@dataclass
class Execution:
    """One run of a command with `world_size` ranks; output of ranks goes to this process's stdout unless `quiet`."""

    command: Command
    world_size: int
    timeout: float | None = None
    quiet: bool = False
    verbose: bool = False
    events: list[dict[str, Any]] = field(default_factory=list, init=False)
    _launcher_text: bytes = field(default=b"", init=False)
    _pending: bytes = field(default=b"", init=False)
    _signals: list[int] = field(default_factory=list, init=False)
    _timed_out: bool = field(default=False, init=False)
    _end_by: float | None = field(default=None, init=False)

    def run(self) -> int:
        """Start, wait, explain; the exit code for the shell."""
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        environment = {**os.environ, **self.command.environment}
        self._process = subprocess.Popen(
            self.command.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._follow()
        finally:
            self._reap()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._verdict()

    def _follow(self) -> None:
        selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        selector.register(self._process.stdout, selectors.EVENT_READ, self._on_output)
        selector.register(self._process.stderr, selectors.EVENT_READ, self._on_errors)
        deadline = time.monotonic() + self.timeout if self.timeout else None
        ended_at: float | None = None
        while selector.get_map():
            ready = selector.select(timeout=0.2)
            for key, _ in ready:
                self._read(selector, key)
            if self._process.poll() is not None:
                ended_at = ended_at or time.monotonic()
                if not ready and time.monotonic() - ended_at > 1:
                    return  # a stray process holds the pipe
            if deadline and time.monotonic() > deadline and not self._timed_out:
                self._timed_out = True
                self._end_by = time.monotonic() + GRACE
                self._process.terminate()
            if self._end_by and time.monotonic() > self._end_by:
                return

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        data = os.read(key.fd, 65536)
        if data:
            key.data(data)
        else:
            selector.unregister(key.fileobj)

    def _on_output(self, data: bytes) -> None:
        if not self.quiet:
            _write(sys.stdout, self._untagged(data))

    def _on_errors(self, data: bytes) -> None:
        found, text, self._pending = events.split(self._pending + self._untagged(data))
        for event in found:
            self._on_event(event)
        self._launcher_text += text
        if self.verbose or not self._failed():
            _write(sys.stderr, text)

    def _untagged(self, data: bytes) -> bytes:
        return _TAG.sub(b"", data) if self.command.tags_output else data

    def _on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "folder" and Path(event["path"]).is_dir():
            (Path(event["path"]) / "command.txt").write_text(f"{self.command}\n", encoding="utf-8")
        if event["event"] == "failed" and not self._end_by:
            self._end_by = time.monotonic() + GRACE

    def _failed(self) -> bool:
        return any(e["event"] in {"failed", "refused"} or e.get("exit_code") for e in self.events)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first SIGTERM or SIGUSR1 asks ranks to save and stop; SIGINT, or a second signal, ends the job."""
        self._signals.append(number)
        here = self._pids_here()
        if number != signal.SIGINT and len(self._signals) == 1 and here:
            for pid in here:
                _kill(pid, signal.SIGUSR1)
        else:
            self._end_by = time.monotonic() + GRACE
            self._process.terminate()

    def _pids_here(self) -> dict[int, int]:
        """Rank by process id, of the ranks on this machine that have started and not reported their end."""
        host = socket.gethostname()
        done = {e["rank"] for e in self.events if e["event"] == "done"}
        started = (e for e in self.events if e["event"] == "started" and e["host"] == host)
        return {e["pid"]: e["rank"] for e in started if e["rank"] not in done}

    def _reap(self) -> None:
        """Leave nothing behind: the launcher, then ranks that outlived it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=GRACE if not self._end_by else 1)
            except subprocess.TimeoutExpired:
                _kill_group(self._process.pid)
                self._process.wait()
        for pid in self._pids_here():
            _kill(pid, signal.SIGKILL)
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _verdict(self) -> int:
        code = self._process.returncode
        done = {e["rank"] for e in self.events if e["event"] == "done"}
        for explain in (self._refused, self._died, self._reported):
            found = explain()
            if found is not None:
                return found
        codes = {e["exit_code"] for e in self.events if e["event"] == "done"}
        if len(done) == self.world_size and len(codes) == 1:
            return int(codes.pop())
        if self._timed_out:
            return _say(f"ended after --timeout {self.timeout:g} seconds", ExitCode.TIMEOUT)
        if self._signals:
            return _say(f"ended by {signal.Signals(self._signals[-1]).name}", 128 + self._signals[-1])
        missing = sorted(set(range(self.world_size)) - done)
        how = f"{Path(self.command.argv[0]).name} ended with code {code}"
        if self._launcher_text and not self.verbose and self._failed():
            _write(sys.stderr, self._launcher_text)
        who = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        return _say(f"{how}, and {who} did not report the end of the run", ExitCode.FAILURE)

    def _refused(self) -> int | None:
        event = next((e for e in self.events if e["event"] == "refused"), None)
        return None if event is None else _say(event["message"], event["exit_code"])

    def _died(self) -> int | None:
        """A rank killed by a signal comes before what others say: losing it made them fail."""
        text = self._launcher_text.decode(errors="replace")
        death = killed(text, self._pids_here(), socket.gethostname())
        reported = {e["rank"] for e in self.events if e["event"] in {"failed", "done"}}
        if death is None or death.rank in reported or self._timed_out or self._signals:
            return None
        return _say(f"the first failure: {death}", ExitCode.FAILURE)

    def _reported(self) -> int | None:
        event = events.first_failure(self.events)
        if event is None:
            return None
        if event["exit_code"] == ExitCode.BAD_INPUT:
            return _say(event["message"], ExitCode.BAD_INPUT)
        trace = f"\n{event['traceback'].rstrip()}" if event["traceback"] else f"\n{event['message']}"
        return _say(f"the first failure: rank {event['rank']} on {event['host']}:{trace}", event["exit_code"])


_TAG = re.compile(rb"^\[\d+(?:,\d+)?\]<std(?:out|err)>: ?", re.MULTILINE)


def _say(text: str, code: int) -> int:
    print(f"ddl: {text}", file=sys.stderr)
    return int(code)


def _write(stream: IO[str], data: bytes) -> None:
    stream.flush()
    stream.buffer.write(data)  # type: ignore[attr-defined]
    stream.buffer.flush()  # type: ignore[attr-defined]


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
