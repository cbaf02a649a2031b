"""Execution of requests. Any thread submits them in any order; rounds of negotiation order them.

One thread at a time drives the rounds. It is the thread that waits for a result, because this saves
a switch between threads. Otherwise it is the background thread, so that a rank takes part while its
other threads compute.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from mpi4py import MPI

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.doorbell import BACKGROUND, FOREGROUND, doorbell
from hvd_train.comm.engines.mpi import MpiCommunicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.torch.entry import Entry
from hvd_train.torch.exceptions import HorovodInternalError
from hvd_train.torch.negotiation import Negotiation
from hvd_train.torch.requests import Request, Response, Spec
from hvd_train.torch.settings import LOG, Settings
from hvd_train.torch.stalls import StallMonitor
from hvd_train.torch.timeline import Timeline
from hvd_train.torch.transfer import Transfer

_PARK_SECONDS = 0.5
"""Longest time that a thread stays parked, and the interval between checks for stalls."""

_BATCH_SECONDS = 1e-3
"""Time that the background thread waits before it drives. Other threads may submit more requests,
which then share a round, or may wait for a result and drive themselves."""


class Executor:
    """Executes the operations of the ranks of `comm`, an MPI communicator that it owns and frees."""

    def __init__(self, comm: MPI.Intracomm, settings: Settings) -> None:
        self.settings = settings
        self._group = comm.group
        self.rank, self.size = comm.rank, comm.size
        self.world: Communicator = MpiCommunicator(comm) if comm.size > 1 else SingleCommunicator()
        self.negotiation = Negotiation(comm.size, settings.cache_capacity, settings.fusion_threshold)
        self.timeline: Timeline | None = None
        self.ended: str | None = None
        """The reason why the executor accepts no more operations, or None while it runs."""
        hosts = self.world.all_gather(torch.tensor(self.world.local_size))
        self.homogeneous = len({int(n) for n in hosts}) == 1
        """True if all hosts have the same number of ranks."""
        one_host = 1 < comm.size == self.world.local_size and self.world.shared_memory is not None
        self._doorbell = doorbell(comm, one_host=one_host)
        self._transfers: dict[int, Transfer] = {0: Transfer(self.world, range(comm.size))}
        self._entries: dict[str, Entry] = {}
        """The incomplete requests of this rank, by `Request.text`."""
        self._new: list[Request] = []
        self._counters: defaultdict[tuple[str, int], Any] = defaultdict(itertools.count)
        self._lock = threading.Lock()
        self._progress = threading.Lock()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        """Set once nothing is shared with other ranks any more."""
        self._waiters = 0
        self._next_round = self._next_check = 0.0
        self._stalls = StallMonitor(settings)
        self._thread = threading.Thread(target=self._background, name="hvd", daemon=True)
        self._thread.start()

    def submit(self, request: Request, entry: Entry, *, wake: bool = True) -> Entry:
        """Submit a request and return its entry.

        `wake` wakes the background thread. A caller that waits at once drives by itself and passes
        False. A request without a name gets its number here. Raise ValueError if an operation of
        the same name is incomplete, and HorovodInternalError after the end.
        """
        with self._lock:
            if self.ended is not None:
                raise HorovodInternalError(f"hvd has been shut down: {self.ended}")
            spec = request.spec
            if not spec.name:
                request = Request(spec, next(self._counters[spec.kind, spec.process_set]))
            entry.request = request
            if self._entries.setdefault(request.text, entry) is not entry:
                raise ValueError(
                    f"{request.key} is still being processed; wait for its result before the next operation of this "
                    "name, or use another name"
                )
            self._new.append(request)
            if wake and len(self._new) == 1:
                self._doorbell.wake()
        return entry

    def wait(self, entry: Entry) -> None:
        """Return when `entry` is done."""
        while not entry.done:
            if self._progress.acquire(blocking=False):
                self._drive(lambda: entry.done, park=True)
            else:
                self._wait_for_driver(entry)

    def shutdown(self) -> None:
        """Shut down on all ranks. If one rank shuts down, all do."""
        with contextlib.suppress(HorovodInternalError):
            self.wait(self.submit(Request(Spec("shutdown")), Entry([], []), wake=False))
        self._closed.wait()

    def ranks_of(self, comm: MPI.Comm) -> list[int]:
        """Return the ranks in this executor of the ranks of `comm`, in the order of `comm`."""
        return list(MPI.Group.Translate_ranks(comm.group, range(comm.size), self._group))

    def start_timeline(self, path: str, mark_cycles: bool) -> None:
        self.stop_timeline()
        if self.rank == 0:
            self.timeline = Timeline(path, mark_cycles)

    def stop_timeline(self) -> None:
        timeline, self.timeline = self.timeline, None
        if timeline is not None:
            timeline.close()

    def _wait_for_driver(self, entry: Entry) -> None:
        with self._lock:
            if self.ended is None:
                self._doorbell.wake()
        with self._changed:
            self._waiters += 1
            self._changed.wait_for(lambda: entry.done or not self._progress.locked())
            self._waiters -= 1

    def _background(self) -> None:
        while self.ended is None:
            self._doorbell.park(BACKGROUND, _PARK_SECONDS, self._idle)
            time.sleep(_BATCH_SECONDS)
            if self.ended is None and self._progress.acquire(blocking=False):
                self._drive(lambda: False, park=False)

    def _drive(self, until: Callable[[], bool], *, park: bool) -> None:
        """Drive rounds while there is work, or with `park` until `until` is true.

        The caller holds the progress lock, which this method releases.
        """
        self._doorbell.claim()
        try:
            with torch.no_grad():
                while self.ended is None and not until():
                    if self._has_work():
                        self._round()
                    elif park:
                        self._doorbell.park(FOREGROUND, _PARK_SECONDS, self._idle)
                    else:
                        break
                    self._check_stalls()
        except BaseException as error:
            self._end(f"rank {self.rank} failed: {type(error).__name__}: {error}")
            self._closed.set()
            raise
        finally:
            if self.ended is None:
                self._doorbell.leave()
            self._progress.release()
            self._notify()
            if self.ended is None and self._has_work():
                self._doorbell.wake(BACKGROUND)

    def _idle(self) -> bool:
        return not self._new and self.ended is None

    def _has_work(self) -> bool:
        return bool(self._new) or self._doorbell.rung

    def _notify(self) -> None:
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def _round(self) -> None:
        if self.settings.cycle:
            time.sleep(max(0.0, self._next_round - time.monotonic()))
            self._next_round = time.monotonic() + self.settings.cycle
        with self._lock:
            new, self._new = self._new, []
        timeline = self.timeline
        if timeline:
            timeline.cycle()
        messages = self._doorbell.enter(self.negotiation.encode(new))
        for response in self.negotiation.advance(messages):
            self._execute(response)
        if timeline:
            timeline.flush()

    def _execute(self, response: Response) -> None:
        start = time.perf_counter()
        if response.kind == "shutdown":
            self._close(response.error)
            return
        get = self._entries.get
        entries = [get(request.text) for request in response.requests]
        if response.kind == "join":
            self._reset_counters()
            entries = [entry for entry in list(self._entries.values()) if entry.key.kind == "join"]
        elif not response.error:
            self._dispatch(response, entries)
        self._finish([entry for entry in entries if entry is not None], response, start)
        self._notify()

    def _reset_counters(self) -> None:
        """Restart the numbers of operations without a name.

        A rank that had joined did not count the operations of the other ranks.
        """
        with self._lock:
            self._counters.clear()

    def _finish(self, entries: list[Entry], response: Response, start: float) -> None:
        with self._lock:
            for entry in entries:
                del self._entries[entry.request.text]
        timeline = self.timeline
        if timeline and not response.error:
            for entry in entries:
                timeline.operation(entry.key, entry.start, start, time.perf_counter())
        for entry in entries:
            if response.kind in {"join", "add"}:
                entry.result = response.value
            entry.error = response.error or entry.error
            entry.done = True

    def _dispatch(self, response: Response, entries: list[Entry | None]) -> None:
        if response.kind == "add":
            self._add(response.value)
        elif response.kind == "remove":
            self._remove(response.value, entries)
        elif response.kind != "barrier":
            transfer = self._transfers.get(response.requests[0].spec.process_set)
            if transfer is not None:
                if response.requests[0].spec.device != "cpu":
                    _wait_for_tensors(entries)
                transfer.carry_out(response, entries)

    def _add(self, number: int) -> None:
        ranks = self.negotiation.process_sets[number]
        comm = self.world.split(int(self.rank in ranks), self.rank)
        if self.rank in ranks:
            self._transfers[number] = Transfer(comm, ranks)
        else:
            comm.close()

    def _remove(self, number: int, entries: list[Entry | None]) -> None:
        for entry in entries[1:]:
            if entry is not None:
                entry.error = f"{entry.key}: its process set was removed"
        transfer = self._transfers.pop(number, None)
        if transfer is not None:
            transfer.comm.close()

    def _close(self, reason: str) -> None:
        """Free what the ranks share. All ranks call this in the same round."""
        self._end(reason)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._doorbell.close()
        for transfer in reversed(self._transfers.values()):
            transfer.comm.close()
        self._closed.set()

    def _end(self, reason: str) -> None:
        """End the executor. All incomplete and later operations fail."""
        with self._lock:
            if self.ended is not None:
                return
            self.ended = reason
            self._doorbell.wake(BACKGROUND)
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            entry.error = None if entry.key.kind == "shutdown" else f"{entry.key}: {reason}"
            entry.done = True
        self.stop_timeline()

    def _check_stalls(self) -> None:
        """Report stalls on rank 0.

        After the stall shutdown time, end the operations of all ranks.
        """
        now = time.monotonic()
        if self.rank or self.ended is not None or now < self._next_check:
            return
        self._next_check = now + _PARK_SECONDS
        warnings, fatal = self._stalls.check(self.negotiation.waiting(), now)
        for warning in warnings:
            LOG.warning(warning)
        refused = self._stalls.lasting(self.negotiation.conflicts())
        with self._lock:
            self._new += [Request(spec) for spec in refused]
            if fatal:
                self._new.append(Request(Spec("shutdown", fatal)))


def _wait_for_tensors(entries: list[Entry | None]) -> None:
    """Make the current CUDA stream wait until the tensors of `entries` are ready."""
    for entry in entries:
        if entry is not None and entry.ready is not None:
            torch.cuda.current_stream().wait_event(entry.ready)
