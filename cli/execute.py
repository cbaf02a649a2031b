"""Run a command that starts ranks: pass their output on, obey signals, and say how it ended.

Exit code 0 of a launcher proves nothing (a lost daemon, N worlds of one rank): success is a word from every rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from cli import guard, ranks
from cli.blame import killed, lost
from cli.guard import Guard, Guards
from cli.launchers.base import Command
from cli.watchdog import Gone, Watchdog
from hvd_train import events
from hvd_train.errors import ExitCode
from hvd_train.heartbeat import BEAT

GRACE = 4.0
"""Seconds a launcher has to end a job in which a rank failed, or that was told to end."""
BEAT_SECONDS = 1.0
TOGETHER = 1.0
"""Seconds within which signals are one: SLURM sends a job's to its script, to the step and to this command."""


@dataclass
class Execution:
    """One run of a command with `world_size` ranks; output of ranks goes to this process's stdout unless `quiet`.

    A job that stands still for `stall_timeout` seconds is ended, with 0 never. `hosts` are the others that can be reached
    over ssh, and nothing of the job stays there. With `fewest`, ranks may come, go and fail (Horovod elastic), and so many
    have to reach the end; what stands still is then Horovod's business.
    """

    command: Command
    world_size: int
    timeout: float | None = None
    quiet: bool = False
    verbose: bool = False
    stall_timeout: float = 0
    hosts: Sequence[str] = ()
    fewest: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list, init=False)
    _launcher_text: bytes = field(default=b"", init=False)
    _pending: bytes = field(default=b"", init=False)
    _signals: dict[int, float] = field(default_factory=dict, init=False)
    _timed_out: bool = field(default=False, init=False)
    _end_by: float | None = field(default=None, init=False)
    _folder: Path | None = field(default=None, init=False)
    _stall: str | None = field(default=None, init=False)
    _ticked: float = field(default=0.0, init=False)
    _over: float | None = field(default=None, init=False)
    """Since when every rank has come to its end, by its own account."""
    _guarded: set[tuple[str | int, ...]] = field(default_factory=set, init=False)

    def run(self) -> int:
        """Start, wait, explain; the exit code for the shell."""
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        environment = self.command.within({**os.environ, BEAT: f"{BEAT_SECONDS:g}"})
        self._guards = Guards(self.hosts, self.stall_timeout)
        patience = self.stall_timeout if self.fewest is None else 0
        self._watchdog = Watchdog(self.world_size, patience, time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._process = subprocess.Popen(
            self.command.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            self._follow()
            self._hear_guards()
        finally:
            self._reap()
            if self._folder:
                ranks.remove(self._folder)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._verdict()

    def _follow(self) -> None:
        selector = self._selector
        streams = {self._process.stdout: self._on_output, self._process.stderr: self._on_errors}
        for stream, receive in streams.items():
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, receive)
        deadline = time.monotonic() + self.timeout if self.timeout else None
        ended_at: float | None = None
        while any(stream in selector.get_map() for stream in streams if stream):
            ready = selector.select(timeout=0.2)
            for key, _ in ready:
                self._read(selector, key)
            if self._process.poll() is not None:
                ended_at = ended_at or time.monotonic()
                if not ready and time.monotonic() - ended_at > 1:
                    return  # a stray process holds the pipe
            self._tick()
            if deadline and time.monotonic() > deadline and not self._timed_out:
                self._timed_out = True
                self._end_by = time.monotonic() + GRACE
                self._process.terminate()
            if self._end_by and time.monotonic() > self._end_by:
                return

    def _hear_guards(self) -> None:
        """A launcher that ended without a word may have done so before the guard of the host to blame could speak."""
        if self._end_by or self._signals or self._failed() or not self._guards.posted:
            return
        now = time.monotonic()
        deadline = now + TOGETHER
        while now < deadline and self._watchdog.running() and not self._watchdog.gone(now):
            for key, _ in self._selector.select(deadline - now):
                self._read(self._selector, key)
            now = time.monotonic()

    def _tick(self) -> None:
        """Once a second: look at the job, and let guards know that we are here."""
        now = time.monotonic()
        if now - self._ticked < BEAT_SECONDS:
            return
        self._ticked = now
        self._guards.tell()
        stall = self._watchdog.look(now)
        if stall and not self._end_by:
            self._stall = stall
            self._end_by = now + 1
            self._process.terminate()
        everybody = len(self._watchdog.done | self._watchdog.lost) >= self.world_size
        self._over = (self._over or now) if everybody else None
        if self._over and not self._end_by and self.fewest is None and 0 < self.stall_timeout < now - self._over:
            self._end_by = now + 1  # a rank is at its end and does not leave: the result is there
            self._process.terminate()
        if not self._end_by and self.fewest is None and self._watchdog.unreported(now, GRACE):
            self._end_by = now + 1
            self._process.terminate()

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        is_process = isinstance(key.fileobj, int)
        data = b"" if is_process else os.read(key.fd, 65536)
        if not data:
            selector.unregister(key.fileobj)
        if is_process:
            os.close(key.fd)
        key.data(data)

    def _on_output(self, data: bytes) -> None:
        if not self.quiet:
            _write(sys.stdout, self._untagged(data))

    def _on_errors(self, data: bytes) -> None:
        found, text, self._pending = events.split(self._pending + self._untagged(data))
        for event in found:
            self._on_event(event)
        self._launcher_text += text
        if text and not self._end_by and self.command.argv[0] == "srun" and self._lost_host():
            self._end_by = time.monotonic() + GRACE  # srun waits for its tasks there, until SLURM kills all of the job
            self._process.terminate()
        if self.verbose or not self._failed():
            _write(sys.stderr, text)

    def _untagged(self, data: bytes) -> bytes:
        return _TAG.sub(b"", data) if self.command.tags_output else data

    def _on_event(self, event: dict[str, Any]) -> None:
        self._watchdog.hear(event, time.monotonic())
        if event["event"] == "beat":
            self._guard(event["host"], event["pid"], event["parent"])
            return
        self.events.append(event)
        if event["event"] == "lost":
            print(f"ddl: {self._rank(event['lost'])} is lost; the others go on without it", file=sys.stderr)
        if event["event"] == "folder" and Path(event["path"]).is_dir():
            self._folder = Path(event["path"])
            (self._folder / "command.txt").write_text(f"{self.command}\n", encoding="utf-8")
        if self._folder and event["event"] in {"folder", "started"}:
            ranks.write(self._folder, (_only(e, "rank", "host", "pid") for e in self.events if e["event"] == "started"))
        if event["event"] == "failed" and not self._end_by and self.fewest is None:
            self._end_by = time.monotonic() + GRACE

    def _guard(self, host: str, *pids: int) -> None:
        """Hear of the end of a rank, and of the daemon that started it."""
        if (host, *pids) in self._guarded:
            return
        self._guarded.add((host, *pids))
        if host == socket.gethostname():
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pids[0])
                self._selector.register(descriptor, selectors.EVENT_READ, lambda _: self._on_end(host, pids[0]))
            return
        for sent in self._guards.post():
            assert sent.process.stdout is not None
            self._selector.register(sent.process.stdout, selectors.EVENT_READ, partial(self._on_guard, sent))
        self._guards.tell(host, reversed(pids))  # of two that ended at once, the daemon is the cause

    def _on_guard(self, sent: Guard, data: bytes) -> None:
        for pid in sent.news(data):
            self._on_end(sent.host, pid)

    def _on_end(self, host: str, pid: int) -> None:
        consequence = host == socket.gethostname() and self._process.poll() is not None
        if not (self._end_by or consequence or self._failed()):
            self._watchdog.end(host, pid, time.monotonic())

    def _failed(self) -> bool:
        return self.fewest is None and any(
            e["event"] in {"failed", "refused"} or e.get("exit_code") for e in self.events
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGUSR1 ask ranks to save and stop, also when several come; SIGINT, or SIGTERM later on, ends the job."""
        now = time.monotonic()
        insists = number == signal.SIGTERM and now - self._signals.get(number, now) > TOGETHER
        asked, here = bool(self._signals), self._pids_here()
        self._signals.setdefault(number, now)
        if number == signal.SIGINT or insists or not (asked or here):
            self._end_by = self._end_by or now + GRACE
            self._process.terminate()
        elif not asked:
            for pid in here:
                _kill(pid, signal.SIGUSR1)

    def _rank(self, number: int) -> str:
        return str(self._watchdog.ranks.get(number, f"rank {number}"))

    def _pids_here(self) -> dict[int, int]:
        """Rank by process id, of the ranks on this machine that have spoken and not reported their end."""
        host, done = socket.gethostname(), self._watchdog.done | self._watchdog.lost
        return {r.pid: r.number for r in self._watchdog.ranks.values() if r.host == host and r.number not in done}

    def _reap(self) -> None:
        """Leave nothing behind: the launcher, then ranks that outlived it."""
        left = guard.known(self._pids_here())
        if self._process.poll() is None:
            left += psutil.Process(self._process.pid).children(recursive=True)
            self._process.terminate()
            try:
                self._process.wait(timeout=GRACE if not self._end_by else 1)
            except subprocess.TimeoutExpired:
                _kill_group(self._process.pid)
                self._process.wait()
        was_killed = self._process.returncode < 0
        guard.end([*left, *guard.session(self._process.pid)] if was_killed else left, 0)
        if was_killed:
            guard.clear(self._process.pid)
            guard.clear_job(self._process.pid)
        self._guards.dismiss()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fd)
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _verdict(self) -> int:
        code = self._process.returncode
        done = {e["rank"] for e in self.events if e["event"] == "done"}
        ended = {(e["host"], e["pid"]) for e in self.events if e["event"] == "done" and e["exit_code"] == 0}
        if self.fewest is not None and code == 0 and len(ended) >= self.fewest:
            return ExitCode.OK
        for explain in (self._refused, self._stalled, self._lost, self._missed, self._died, self._reported):
            found = explain()
            if found is not None:
                return found
        codes = {e["exit_code"] for e in self.events if e["event"] == "done"}
        if len(done | self._watchdog.lost) == self.world_size and len(codes) == 1:
            return int(codes.pop())
        if self._timed_out:
            return _say(f"ended after --timeout {self.timeout:g} seconds", ExitCode.TIMEOUT)
        if self._signals:
            last = list(self._signals)[-1]
            return _say(f"ended by {signal.Signals(last).name}", 128 + last)
        missing = sorted(set(range(self.world_size)) - done - self._watchdog.lost)
        how = f"{Path(self.command.argv[0]).name} ended with code {code}"
        if self._launcher_text and not self.verbose and self._failed():
            _write(sys.stderr, self._launcher_text)
        who = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        where = self._watchdog.accuse([])
        return _say(f"{how}, and {who} did not report the end of the run\n{where}".rstrip(), ExitCode.FAILURE)

    def _refused(self) -> int | None:
        event = next((e for e in self.events if e["event"] == "refused"), None)
        return None if event is None else _say(event["message"], event["exit_code"])

    def _stalled(self) -> int | None:
        return None if self._stall is None else _say(self._stall, ExitCode.FAILURE)

    def _lost(self) -> int | None:
        """A host or daemon that is gone takes its ranks with it, and what the others say of that is no news."""
        gone = self._gone()
        return None if gone is None or gone.rank else self._accuse(gone)

    def _missed(self) -> int | None:
        """A rank that has not failed by its own account, and of which others say that they cannot go on without it."""
        failed = [e for e in self.events if e["event"] == "failed"]
        first = next((e for e in failed if e.get("lost") not in {None, *(f["rank"] for f in failed)}), None)
        if first is None or self._timed_out or self._signals:
            return None
        rank = self._watchdog.ranks.get(first["lost"])
        last = self._watchdog.accuse([rank] if rank else [])
        return _say(f"the first failure: {first['message']}\n{last}".rstrip(), ExitCode.FAILURE)

    def _died(self) -> int | None:
        """A rank killed by a signal comes before what others say: losing it made them fail."""
        text, gone = self._launcher_text.decode(errors="replace"), self._gone()
        death = killed(text, self._pids_here(), socket.gethostname(), self._watchdog.lost)
        reported = {e["rank"] for e in self.events if e["event"] in {"failed", "done"}}
        if self._timed_out or self._signals:
            return None
        if death is not None and death.rank not in reported:
            return _say(f"the first failure: {death}", ExitCode.FAILURE)
        first = events.first_failure(self.events)
        if gone is None or gone.rank is None or gone.rank.number in reported or (first and first["time"] < gone.wall):
            return None
        return self._accuse(gone)

    def _gone(self) -> Gone | None:
        """What a guard has seen first, else what the launcher says."""
        if self._timed_out or self._signals:
            return None
        now, host = time.monotonic(), self._lost_host()
        if host and not self._watchdog.gone(now):
            self._watchdog.end(host, 0, now)
        return self._watchdog.gone(now)

    def _lost_host(self) -> str | None:
        return lost(self._launcher_text.decode(errors="replace"))

    def _accuse(self, gone: Gone) -> int:
        return _say(f"the first failure: {gone}\n{self._watchdog.accuse(gone.ranks)}", ExitCode.FAILURE)

    def _reported(self) -> int | None:
        event = events.first_failure(self.events)
        if event is None:
            return None
        if event["exit_code"] == ExitCode.BAD_INPUT:
            who = f" (rank {event['rank']} on {event['host']})" if self.world_size > 1 else ""
            return _say(f"{event['message']}{who}", ExitCode.BAD_INPUT)
        trace = f"\n{event['traceback'].rstrip()}" if event["traceback"] else f"\n{event['message']}"
        return _say(f"the first failure: rank {event['rank']} on {event['host']}:{trace}", event["exit_code"])


_PR_SET_PDEATHSIG = 1
_TAG = re.compile(rb"^\[\d+(?:,\d+)?\]<std(?:out|err)>: ?", re.MULTILINE)


def _end_with_parent() -> None:
    """Where this command is killed, the launcher gets SIGTERM, and ends the job."""
    with contextlib.suppress(AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _only(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


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
