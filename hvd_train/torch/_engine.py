"""Requests of any thread, in any order: announced, agreed on in rounds, carried out in the order of the agreement.

One thread at a time drives: the one that waits for a result, which saves being told by another, or else the background
thread, so that a rank takes part while its own threads compute.
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
from torch import Tensor

from hvd_train.comm._doorbell import BACKGROUND, FOREGROUND, rounds
from hvd_train.comm.base import Communicator
from hvd_train.comm.mpi import MpiCommunicator
from hvd_train.comm.single import SingleCommunicator
from hvd_train.torch._entry import Entry
from hvd_train.torch._negotiation import Key, Negotiation, Request, Response, Spec
from hvd_train.torch._settings import LOG, Settings
from hvd_train.torch._timeline import Timeline
from hvd_train.torch._transfer import Transfer
from hvd_train.torch.exceptions import HorovodInternalError

_PARKED = 0.5
"""Seconds after which a parked thread looks round without having been rung."""

_GRACE = 1e-3
"""Seconds that the background thread leaves to others of this rank, which may be issuing more, or about to wait and so
to drive: what they issue goes into one round, and nobody has to be told by another thread."""


class Engine:
    """The ranks of `comm`, an MPI communicator that from now on belongs to this object."""

    def __init__(self, comm: MPI.Intracomm, settings: Settings) -> None:
        self.settings = settings
        self._group = comm.group
        self.rank, self.size = comm.rank, comm.size
        self.world: Communicator = MpiCommunicator(comm) if comm.size > 1 else SingleCommunicator()
        self.negotiation = Negotiation(comm.size, settings.cache_capacity, settings.fusion_threshold)
        self.timeline: Timeline | None = None
        self.ended: str | None = None
        """Why there will be no more operations."""
        hosts = self.world.all_gather(torch.tensor(self.world.local_size))
        self.homogeneous = len({int(n) for n in hosts}) == 1
        """All hosts have the same number of ranks."""
        one_host = 1 < comm.size == self.world.local_size and self.world.shared_memory is not None
        self._rounds = rounds(comm, one_host=one_host)
        self._transfers: dict[int, Transfer] = {0: Transfer(self.world, range(comm.size))}
        self._entries: dict[str, Entry] = {}
        """By the word of their requests."""
        self._fresh: list[Request] = []
        self._counters: defaultdict[tuple[str, int], Any] = defaultdict(itertools.count)
        self._lock = threading.Lock()
        self._progress = threading.Lock()
        self._changed = threading.Condition()
        self._left = threading.Event()
        """Nothing is shared with other ranks any more."""
        self._waiters = 0
        self._next_round = self._next_look = 0.0
        self._stalls = _Stalls(settings)
        self._thread = threading.Thread(target=self._background, name="hvd", daemon=True)
        self._thread.start()

    def submit(self, request: Request, entry: Entry, *, ring: bool = True) -> Entry:
        """Announce `entry`; without `ring`, the caller waits for it at once and drives by itself.

        A request without a name gets its number here.

        ValueError where the same name is under way, HorovodInternalError after the end.
        """
        with self._lock:
            if self.ended is not None:
                raise HorovodInternalError(f"hvd has been shut down: {self.ended}")
            spec = request.spec
            if not spec.name:
                request = Request(spec, next(self._counters[spec.kind, spec.process_set]))
            entry.request = request
            if self._entries.setdefault(request.word, entry) is not entry:
                raise ValueError(
                    f"{request.key} is still being processed; a second operation of this name must wait for its "
                    "result, or have another name"
                )
            self._fresh.append(request)
            if ring and len(self._fresh) == 1:
                self._rounds.wake()
        return entry

    def wait(self, entry: Entry) -> None:
        """Return once `entry` is done."""
        while not entry.done:
            if self._progress.acquire(blocking=False):
                self._drive(lambda: entry.done, park=True)
            else:
                self._wait_for_driver(entry)

    def shutdown(self) -> None:
        """Leave together with all other ranks: where one leaves, all do."""
        with contextlib.suppress(HorovodInternalError):
            self.wait(self.submit(Request(Spec("shutdown")), Entry([], []), ring=False))
        self._left.wait()

    def ranks_of(self, comm: MPI.Comm) -> list[int]:
        """The ranks in this engine of those of `comm`, in the order of `comm`."""
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
                self._rounds.wake()
        with self._changed:
            self._waiters += 1
            self._changed.wait_for(lambda: entry.done or not self._progress.locked())
            self._waiters -= 1

    def _background(self) -> None:
        while self.ended is None:
            self._rounds.park(BACKGROUND, _PARKED, self._idle)
            time.sleep(_GRACE)
            if self.ended is None and self._progress.acquire(blocking=False):
                self._drive(lambda: False, park=False)

    def _drive(self, until: Callable[[], bool], *, park: bool) -> None:
        """Take part in rounds until there is nothing to do, or where it may `park`, until then; holds the progress lock."""
        self._rounds.claim()
        try:
            with torch.no_grad():
                while self.ended is None and not until():
                    if self._has_work():
                        self._round()
                    elif park:
                        self._rounds.park(FOREGROUND, _PARKED, self._idle)
                    else:
                        break
                    self._watch()
        except BaseException as error:
            self._end(f"rank {self.rank} failed: {type(error).__name__}: {error}")
            self._left.set()
            raise
        finally:
            if self.ended is None:
                self._rounds.leave()
            self._progress.release()
            self._notify()
            if self.ended is None and self._has_work():
                self._rounds.wake(BACKGROUND)

    def _idle(self) -> bool:
        return not self._fresh and self.ended is None

    def _has_work(self) -> bool:
        return bool(self._fresh) or self._rounds.rung

    def _notify(self) -> None:
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def _round(self) -> None:
        if self.settings.cycle:
            time.sleep(max(0.0, self._next_round - time.monotonic()))
            self._next_round = time.monotonic() + self.settings.cycle
        with self._lock:
            fresh, self._fresh = self._fresh, []
        timeline = self.timeline
        if timeline:
            timeline.cycle()
        messages = self._rounds.enter(self.negotiation.encode(fresh))
        for response in self.negotiation.advance(messages):
            self._respond(response)
        if timeline:
            timeline.flush()

    def _respond(self, response: Response) -> None:
        start = time.perf_counter()
        if response.kind == "shutdown":
            self._leave(response.error)
            return
        get = self._entries.get
        entries = [get(request.word) for request in response.requests]
        if response.kind == "join":
            self._recount()
            entries = [entry for entry in list(self._entries.values()) if entry.key.kind == "join"]
        elif not response.error:
            self._carry_out(response, entries)
        self._finish([entry for entry in entries if entry is not None], response, start)
        self._notify()

    def _recount(self) -> None:
        """Count operations without a name anew: a rank that has joined did not count those that others issued meanwhile."""
        with self._lock:
            self._counters.clear()

    def _finish(self, entries: list[Entry], response: Response, start: float) -> None:
        with self._lock:
            for entry in entries:
                del self._entries[entry.request.word]
        timeline = self.timeline
        if timeline and not response.error:
            for entry in entries:
                timeline.operation(entry.key, entry.start, start, time.perf_counter())
        for entry in entries:
            if response.kind in {"join", "add"}:
                entry.result = response.value
            entry.error = response.error or entry.error
            entry.done = True

    def _carry_out(self, response: Response, entries: list[Entry | None]) -> None:
        if response.kind == "add":
            self._add(response.value)
        elif response.kind == "remove":
            self._remove(response.value, entries)
        elif response.kind != "barrier":
            transfer = self._transfers.get(response.requests[0].spec.process_set)
            if transfer is not None:
                if response.requests[0].spec.device != "cpu":
                    _await(entries)
                if response.kind == "allreduce":
                    _all_reduce(transfer, response, entries)
                else:
                    assert entries[0] is not None, "only all-reduction goes on without ranks that have joined"
                    _move(transfer, response.requests[0].spec, entries[0])

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

    def _leave(self, reason: str) -> None:
        """All ranks are here: free what they share, once nobody of this rank looks at it any more."""
        self._end(reason)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._rounds.close()
        for transfer in reversed(self._transfers.values()):
            transfer.comm.close()
        self._left.set()

    def _end(self, reason: str) -> None:
        """From now on, and for all that is under way: an error."""
        with self._lock:
            if self.ended is not None:
                return
            self.ended = reason
            self._rounds.wake(BACKGROUND)
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            entry.error = None if entry.key.kind == "shutdown" else f"{entry.key}: {reason}"
            entry.done = True
        self.stop_timeline()

    def _watch(self) -> None:
        """Rank 0 reports what some ranks wait for; where that lasts too long, it ends the operations of all."""
        now = time.monotonic()
        if self.rank or self.ended is not None or now < self._next_look:
            return
        self._next_look = now + _PARKED
        reports, fatal = self._stalls.look(self.negotiation.waiting(), now)
        for report in reports:
            LOG.warning(report)
        refused = self._stalls.last(self.negotiation.conflicts())
        with self._lock:
            self._fresh += [Request(spec) for spec in refused]
            if fatal:
                self._fresh.append(Request(Spec("shutdown", fatal)))


class _Stalls:
    """Requests that some ranks have made long ago and others have not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._since: dict[Key, float] = {}
        self._told: set[Key] = set()
        self._conflicts: set[Spec] = set()

    def look(self, waiting: list[tuple[Key, list[int]]], now: float) -> tuple[list[str], str]:
        """What to warn of, each once, and why to shut down, if so; `waiting` has names and missing ranks."""
        self._since = {name: self._since.get(name, now) for name, _ in waiting}
        self._told &= self._since.keys()
        warn, end = self._settings.stall_warning, self._settings.stall_shutdown
        late = [(n, ranks, now - self._since[n]) for n, ranks in waiting]
        new = [item for item in late if warn and item[2] >= warn and item[0] not in self._told]
        self._told.update(name for name, _, _ in new)
        fatal = next((item for item in late if warn and end and item[2] >= end), None)
        return [_stalled(*item) for item in new], _stalled(*fatal) if fatal else ""

    def last(self, conflicts: list[Spec]) -> list[Spec]:
        """Those of `conflicts` that were there the last time too."""
        before, self._conflicts = self._conflicts, set(conflicts)
        return [spec for spec in conflicts if spec in before]


def _stalled(name: Key, missing: list[int], seconds: float) -> str:
    ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    return f"stalled for {seconds:.0f} s: {name} waits for {ranks}"


def _await(entries: list[Entry | None]) -> None:
    """Let the current CUDA stream go on once the tensors of `entries` are ready."""
    for entry in entries:
        if entry is not None and entry.ready is not None:
            torch.cuda.current_stream().wait_event(entry.ready)


def _all_reduce(transfer: Transfer, response: Response, entries: list[Entry | None]) -> None:
    """Fused; a rank that has joined takes part with zeros."""
    inputs, outputs = [], []
    for request, entry in zip(response.requests, entries, strict=True):
        if entry is None:
            zeros = _zeros(request.spec)
            inputs += zeros
            outputs += zeros
        else:
            inputs += entry.inputs
            outputs += entry.outputs
    spec = response.requests[0].spec
    if len(set(spec.dtypes)) == 1:
        response.kept = transfer.all_reduce(spec, inputs, outputs, response.kept)
        return
    for dtype in dict.fromkeys(x.dtype for x in inputs):
        mine = [i for i, x in enumerate(inputs) if x.dtype == dtype]
        transfer.all_reduce(spec, [inputs[i] for i in mine], [outputs[i] for i in mine])


def _zeros(spec: Spec) -> list[Tensor]:
    return [torch.zeros(s, dtype=getattr(torch, d)) for s, d in zip(spec.shapes, spec.dtypes, strict=True)]


def _move(transfer: Transfer, spec: Spec, entry: Entry) -> None:
    if spec.kind == "allgather":
        entry.result = [transfer.all_gather(x) for x in entry.inputs]
    elif spec.kind == "broadcast":
        pairs = zip(entry.inputs, entry.outputs, strict=True)
        entry.result = [transfer.broadcast(x, out, spec.root) for x, out in pairs]
    elif spec.kind == "alltoall":
        assert entry.splits is not None, "an alltoall says how many rows go where"
        entry.result = transfer.all_to_all(entry.inputs[0], entry.splits)
    else:
        entry.result = [transfer.reduce_scatter(spec, x) for x in entry.inputs]
