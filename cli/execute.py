"""Run a command that starts ranks: pass their output on, obey signals, and say how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from cli import blame, guard, ranks, ssh
from cli.guard import Guard, Guards
from cli.launchers.base import Command
from cli.stop import HEARD, StopRequests
from cli.stream import Errors, Sink, Untagged
from cli.verdict import Evidence, Verdict, verdict
from cli.watchdog import Gone, Watchdog
from hvd_train import events
from hvd_train.heartbeat import BEAT

GRACE = 4.0
"""Seconds a launcher has to end a job in which a rank failed, or that was told to end."""
BEAT_SECONDS = 1.0
LAST_WORDS = 1.0
"""Seconds for which output that has stopped is waited for, after the launcher has ended."""
LOUD = 15.0
"""Seconds after which a rank that has ended is not heard any more, though others go on talking."""
PIECE = 65536


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
    spent: float = 0
    """Seconds of the timeout that are over, as earlier starts of the job took them."""
    quiet: bool = False
    verbose: bool = False
    stall_timeout: float = 0
    hosts: Sequence[str] = ()
    fewest: int | None = None
    client: ssh.Client = ssh.PLAIN
    events: list[dict[str, Any]] = field(default_factory=list, init=False)
    requests: StopRequests = field(default_factory=StopRequests, init=False)
    _signals: int = field(default=0, init=False)
    """How many have come."""
    _started: bool = field(default=False, init=False)
    _timed_out: bool = field(default=False, init=False)
    _end_by: float | None = field(default=None, init=False)
    _folder: Path | None = field(default=None, init=False)
    _stall: str | None = field(default=None, init=False)
    _ticked: float = field(default=0.0, init=False)
    _all_done_since: float | None = field(default=None, init=False)
    _last_words: float = field(default=0.0, init=False)
    """When stderr last had words, which events may be behind."""
    _warned: bool = field(default=False, init=False)
    _stop_signal: int | None = field(default=None, init=False)
    """The signal by which ranks want to be asked to save and stop; without one, they get what this command got."""
    _watched: set[tuple[str | int, ...]] = field(default_factory=set, init=False)

    def run(self) -> int:
        """Start, wait, explain; the exit code for the shell."""
        patience = self.stall_timeout if self.fewest is None else 0
        self._guards = Guards(self.hosts, self.stall_timeout, self.client)
        self._watchdog = Watchdog(self.world_size, patience, time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._out, self._err, self._errors = Sink(1), Sink(2), Errors()
        handlers = {number: signal.signal(number, self._on_signal) for number in HEARD if _is_heard(number)}
        try:
            self._start()
            try:
                self._follow()
                self._hear_guards()
            finally:
                self._reap()
            return self._conclude()
        finally:
            self._close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self.command.argv,
            env=self.command.within({**os.environ, BEAT: f"{BEAT_SECONDS:g}"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        tagged = self.command.tags_output
        self._streams: dict[IO[bytes], tuple[Sink, Callable[[bytes], None]]] = {}
        for stream, sink, receive in (
            (self._process.stdout, self._out, self._on_output),
            (self._process.stderr, self._err, self._on_errors),
        ):
            assert stream is not None
            self._streams[stream] = (sink, _untagged(receive) if tagged else receive)
        self._started = True
        if self.requests:
            self._give_up(GRACE)

    def _follow(self) -> None:
        """Reads until the launcher and its pipes have ended, or the job is to be given up."""
        deadline = time.monotonic() + max(1.0, self.timeout - self.spent) if self.timeout else None
        last_heard = ended = None
        while self._streams:
            heard = self._read(0.2)
            now = time.monotonic()
            self._tick(now)
            if deadline and now > deadline and not self._timed_out:
                self._timed_out = True
                self._give_up(GRACE)
            if self._end_by and now > self._end_by:
                return
            if self._process.poll() is None or self._is_held_up():
                continue
            ended = ended or now
            last_heard = now if heard or last_heard is None else last_heard
            if now - last_heard > LAST_WORDS or now - ended > GRACE:
                return  # a process that outlives the job holds the pipes

    def _hear_guards(self) -> None:
        """A launcher that ended without a word may have done so before the guard of the host to blame could speak."""
        if self._end_by or self.requests or self._failed() or not self._guards.posted:
            return
        now = time.monotonic()
        deadline = now + LAST_WORDS
        while now < deadline and self._watchdog.running() and not self._watchdog.gone(now):
            self._read(deadline - now)
            now = time.monotonic()

    def _read(self, seconds: float) -> bool:
        """Waits for at most `seconds`, and takes in what there is; whether the launcher has said something."""
        for stream, (sink, _) in self._streams.items():
            self._listen(stream, not sink.full)
        ready = [key for key, _ in self._selector.select(min(seconds, 0.02) if self._is_held_up() else seconds)]
        spoke = [key.fileobj for key in ready if key.fileobj in self._streams]
        for key in ready:
            is_process = isinstance(key.fileobj, int)
            data = b"" if is_process else os.read(key.fd, PIECE)
            if not data:
                self._selector.unregister(key.fileobj)
                self._streams.pop(key.fileobj, None)  # type: ignore[call-overload]
            if is_process:
                os.close(key.fd)
            key.data(data)
        return bool(spoke)

    def _listen(self, stream: IO[bytes], wanted: bool) -> None:
        """A reader that falls behind holds the job up, as a pipe does, and not this command."""
        listens = stream in self._selector.get_map()
        if wanted and not listens:
            self._selector.register(stream, selectors.EVENT_READ, self._streams[stream][1])
        elif listens and not wanted:
            self._selector.unregister(stream)

    def _is_held_up(self) -> bool:
        return self._out.full or self._err.full

    def _tick(self, now: float) -> None:
        """Once a second: look at the job, and let guards know that we are here."""
        if now - self._ticked < BEAT_SECONDS:
            return
        self._ticked = now
        self._guards.here()
        self._warn_of_lost_output()
        if self._end_by or self._is_held_up():
            return
        self._stall = self._watchdog.look(now)
        everybody = len(self._watchdog.done | self._watchdog.lost) >= self.world_size
        self._all_done_since = (self._all_done_since or now) if everybody else None
        if self._stall or (self.fewest is None and (self._does_not_leave(now) or self._ended_without_a_word(now))):
            self._give_up(1)

    def _does_not_leave(self, now: float) -> bool:
        """Whether a rank is at its end and stays: the result is there."""
        return self._all_done_since is not None and 0 < self.stall_timeout < now - self._all_done_since

    def _ended_without_a_word(self, now: float) -> bool:
        """Whether a rank is gone and what it may have said has been read: in a loud job that takes its time."""
        quiet = now - self._last_words > LAST_WORDS
        return self._watchdog.unreported(now, GRACE if quiet else LOUD)

    def _give_up(self, seconds: float) -> None:
        """Have the launcher end the job within `seconds`."""
        by = time.monotonic() + seconds
        self._end_by = by if self._end_by is None else min(self._end_by, by)
        self._process.terminate()

    def _on_output(self, data: bytes) -> None:
        if not self.quiet:
            self._out.write(data)

    def _on_errors(self, data: bytes) -> None:
        found, text = self._errors.feed(data)
        for event in found:
            self._on_event(event)
        if text:
            self._last_words = time.monotonic()
            self._look_for_lost_hosts(len(text) + 200)
        if self.verbose or not self._failed():
            self._err.write(text)

    def _look_for_lost_hosts(self, size: int) -> None:
        """srun waits for its tasks on a lost node, until SLURM kills all of the job."""
        if self._launcher == "srun" and not self._end_by and self._lose_host(self._errors.end(size)):
            self._give_up(GRACE)

    def _on_event(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        self._watchdog.hear(event, now)
        if event["event"] == "beat":
            self._watch(event["machine"], event["pid"], event["parent"])
            return
        self.events.append(event)
        if event["event"] == "lost":
            self._say(f"{self._rank(event['lost'])} is lost; the others go on without it")
        if event["event"] == "folder" and Path(event["path"]).is_dir():
            self._folder = Path(event["path"])
            (self._folder / "command.txt").write_text(f"{self.command}\n", encoding="utf-8")
        if event["event"] == "started":
            self._stop_signal = event.get("stop")
        if event["event"] in {"folder", "started"}:
            self._write_ranks()
        if event["event"] == "failed" and not self._end_by and self.fewest is None:
            self._end_by = now + GRACE

    def _write_ranks(self) -> None:
        if self._folder:
            started = [e for e in self.events if e["event"] == "started"]
            hosts = {sent.machine: sent.name for sent in self._guards.posted}
            told = ({"rank": e["rank"], "pid": e["pid"], "host": hosts.get(e["machine"], e["host"])} for e in started)
            ranks.write(self._folder, told, self.client.args)

    def _watch(self, machine: str, *pids: int) -> None:
        """Hear of the end of a rank, and of the daemon that started it."""
        if (machine, *pids) in self._watched:
            return
        self._watched.add((machine, *pids))
        if machine == events.machine():
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pids[0])
                self._selector.register(descriptor, selectors.EVENT_READ, lambda _: self._on_end(machine, pids[0]))
            return
        self._post_guards()
        self._guards.watch(machine, reversed(pids))  # of two that ended at once, the daemon is the cause

    def _post_guards(self) -> None:
        for sent in self._guards.post():
            self._hear(sent)

    def _hear(self, sent: Guard) -> None:
        assert sent.process.stdout is not None
        self._selector.register(sent.process.stdout, selectors.EVENT_READ, partial(self._on_guard, sent))

    def _on_guard(self, sent: Guard, data: bytes) -> None:
        known = bool(sent.machine)
        ended = sent.hear(data)
        if sent.machine and not known:
            self._watchdog.name(sent.machine, sent.name)
            self._write_ranks()
        if not data and not known and self._guards.again(sent):
            self._hear(sent)
        if not data or not known:
            self._post_guards()
        for pid in ended:
            self._on_end(sent.machine, pid)

    def _on_end(self, machine: str, pid: int) -> None:
        consequence = machine == events.machine() and self._process.poll() is not None
        if not (self._end_by or consequence or self._failed()):
            self._watchdog.end(machine, pid, time.monotonic())

    def _failed(self) -> bool:
        return self.fewest is None and any(
            e["event"] in {"failed", "refused"} or e.get("exit_code") for e in self.events
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks ranks to save and stop, or ends a job in which none can be asked; see `StopRequests`."""
        self._signals += 1
        meaning = self.requests.hear(number, time.monotonic())
        if not self._started:
            return
        if meaning == "ask" and self._ask(number):
            if number == signal.SIGINT:
                self._say("asked the ranks to save and stop; Ctrl-C once more ends them at once")
        elif meaning != "nothing":
            self._give_up(0 if self._end_by else GRACE)

    def _ask(self, number: int) -> bool:
        """Passes a request on to all ranks that have spoken; whether there is one."""
        asks = self._stop_signal or (signal.SIGTERM if number == signal.SIGHUP else number)
        running: dict[str, list[int]] = {}
        for rank in self._watchdog.running():
            running.setdefault(rank.machine, []).append(rank.pid)
        here = running.pop(events.machine(), [])
        for pid in here:
            _kill(pid, asks)
        reached = [self._guards.signal(machine, asks, pids) for machine, pids in running.items()]
        by_launcher = asks == signal.SIGUSR1 and not all(reached)
        if by_launcher:
            self._process.send_signal(asks)  # srun and mpirun pass it on
        return bool(here) or any(reached) or by_launcher

    def _say(self, text: str) -> None:
        self._err.write(f"ddl: {text}\n".encode())

    def _warn_of_lost_output(self) -> None:
        if self._out.problem and not self._warned:
            self._warned = True
            self._say(f"warning: nothing more is shown on stdout ({self._out.problem}); the run goes on")

    def _rank(self, number: int) -> str:
        return str(self._watchdog.ranks.get(number, f"rank {number}"))

    @property
    def _launcher(self) -> str:
        return Path(self.command.argv[0]).name

    def _pids_here(self) -> dict[int, int]:
        """Rank by process id, of the ranks on this machine that have spoken and not reported their end."""
        return {r.pid: r.number for r in self._watchdog.running() if r.machine == events.machine()}

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

    def _conclude(self) -> int:
        """Say how the job ended, wait for readers of what it printed, and return the exit code."""
        for _, receive in self._streams.values():
            receive(b"")  # what was held back as the beginning of something
        found = self._explain()
        if found.unexplained and self._failed() and not self.verbose:
            self._err.write(bytes(self._errors.tail))
        if found.text:
            self._say(found.text)
        told = self._signals
        while not (self._out.drain(0.1) and self._err.drain(0.1)) and self._signals == told:
            self._warn_of_lost_output()
        self._warn_of_lost_output()
        self._err.drain(0.1)
        return found.code

    def _explain(self) -> Verdict:
        return verdict(
            Evidence(
                world_size=self.world_size,
                launcher=self._launcher,
                code=self._process.returncode,
                watchdog=self._watchdog,
                events=self.events,
                words=self._errors.end(),
                signals=list(self.requests.first),
                gone=self._gone(),
                stall=self._stall,
                timeout=self.timeout if self._timed_out else None,
                fewest=self.fewest,
                local=self._pids_here(),
                host=socket.gethostname(),
            )
        )

    def _gone(self) -> Gone | None:
        """What a guard has seen first, else what the launcher says."""
        now = time.monotonic()
        if not self._watchdog.gone(now) and not (self._timed_out or self.requests):
            self._lose_host(self._errors.end())
        return self._watchdog.gone(now)

    def _lose_host(self, words: str) -> bool:
        """Take note of a host of the job that the launcher has lost, by its own words; whether there is one."""
        now = time.monotonic()
        for host in blame.lost(words, self._launcher):
            self._watchdog.lose_host(host, now)
        return self._watchdog.gone(now) is not None

    def _close(self) -> None:
        if self._folder:
            ranks.remove(self._folder)
        self._out.close()
        self._err.close()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fd)
        self._selector.close()
        if self._started:
            for stream in (self._process.stdout, self._process.stderr):
                if stream:
                    stream.close()


_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Where this command is killed, the launcher gets SIGTERM, and ends the job."""
    with contextlib.suppress(AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_heard(number: int) -> bool:
    """Not a signal that was ignored when we were started, as SIGHUP by nohup and SIGINT by a shell's `&`."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _untagged(receive: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`receive` of what horovodrun prints, for which each line has its rank before it."""
    tags = Untagged()

    def feed(data: bytes) -> None:
        text = tags.feed(data)
        if text:
            receive(text)
        if not data:
            receive(b"")

    return feed


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
