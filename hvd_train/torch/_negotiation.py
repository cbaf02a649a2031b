"""What ranks agree on before data moves: a state machine that every rank runs on the same input.

In each round every rank contributes the requests it has newly made, and all ranks get all contributions in rank order.
From those alone each computes the same responses in the same order, so nobody coordinates: what is ready, fused with
what, and what went wrong is the same everywhere. A request that was answered before is one small number, its slot.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

ITEMSIZE = {
    "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
OPS = ("Average", "Sum", "Adasum", "Min", "Max", "Product")
ROUNDS = 64
"""Rounds whose responses are kept, because training asks for the same in every step."""

ANY = -1
"""A dimension in which ranks may differ."""


class Spec(NamedTuple):
    """What a rank asks for; ranks agree where theirs are equal. One request has one tensor, or those of a group."""

    kind: str
    name: str = ""
    process_set: int = 0
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    op: int = 0
    prescale: float = 1.0
    postscale: float = 1.0
    root: int = 0
    device: str = "cpu"


class Key(NamedTuple):
    """Which request it is. Those without a name are counted, per kind and process set."""

    process_set: int
    kind: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.name or f'noname.{self.number}'}"


class Request:
    """One with a name may be made again and again by the same object.

    `word` is its key as a string, whose hash Python keeps, and `slot` its slot as of `slots`; see `Negotiation.encode`.
    """

    __slots__ = ("key", "number", "slot", "slots", "spec", "word")

    def __init__(self, spec: Spec, number: int = 0) -> None:
        self.spec, self.number = spec, number
        self.key = Key(spec.process_set, spec.kind, spec.name, number)
        self.word = f"{spec.process_set} {spec.kind} {number} {spec.name}"
        self.slot = 0
        self.slots: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and (self.spec, self.number) == (other.spec, other.number)

    def __repr__(self) -> str:
        return f"Request({self.spec}, {self.number})"


@dataclass(slots=True)
class Response:
    """What all ranks do next, in this order: move the data of `requests`, or raise `error` for each of them.

    `value` is the last rank to join, or the number of a process set. In `kept` a rank has what it needs again when the same
    object comes again.
    """

    kind: str
    requests: list[Request]
    error: str = ""
    value: int = 0
    kept: Any = field(default=None, compare=False)


class _Pending:
    """A request that some ranks have made: a set of ranks, in bits, and the specs that are not that of `request`."""

    __slots__ = ("different", "ranks", "request")

    def __init__(self, request: Request) -> None:
        self.request, self.ranks = request, 0
        self.different: dict[int, Spec] | None = None


class Negotiation:
    """The agreement of `size` ranks; `capacity` slots, and up to `threshold` bytes reduced as one."""

    def __init__(self, size: int, capacity: int = 1024, threshold: int = 128 << 20) -> None:
        self.process_sets: dict[int, tuple[int, ...]] = {0: tuple(range(size))}
        self._members = {0: (1 << size) - 1}
        self._next_set = 1
        self._capacity, self._threshold = capacity, threshold
        self._slots: dict[Spec, int] = {}
        self._slots_now = object()
        """Another object once a slot has become that of another spec."""
        self._known: list[Request] = []
        self._rounds: dict[tuple[int, ...], list[Response]] = {}
        self._table: dict[Key, _Pending] = {}
        self._joined = 0
        self._last = 0

    def encode(self, requests: Iterable[Request]) -> bytes:
        """This rank's contribution to the next round."""
        cached, fresh, now = array("I"), [], self._slots_now
        for request in requests:
            if request.slots is not now:
                slot = self._slots.get(request.spec)
                if slot is None:
                    fresh.append((*request.spec, request.number))
                    continue
                request.slot, request.slots = slot, now
            cached.append(request.slot)
            cached.append(request.number)
        head = len(cached).to_bytes(4, "little") + cached.tobytes()
        return head + json.dumps(fresh).encode() if fresh else head

    def advance(self, messages: Sequence[bytes]) -> list[Response]:
        """The responses to one round of contributions, given in rank order."""
        asked = None if self._table or self._joined else _asked_by_all(messages)
        if asked in self._rounds:
            return self._rounds[asked]
        responses = self._advance(messages)
        if asked and all(r.kind == "allreduce" and not r.error for r in responses):
            if len(self._rounds) == ROUNDS:
                self._rounds.clear()
            self._rounds[asked] = responses
        return responses

    def _advance(self, messages: Sequence[bytes]) -> list[Response]:
        done: list[_Pending] = []
        last: list[Response] = []
        doubtful: list[Spec] = []
        for rank, message in enumerate(messages):
            for request in self._decode(message):
                spec = request.spec
                if spec.kind == "shutdown":
                    last = last or [Response("shutdown", [], spec.name or f"rank {rank} has shut down")]
                elif spec.kind == "join":
                    self._joined |= 1 << rank
                    self._last = rank
                elif spec.kind == "refuse":
                    doubtful.append(spec)
                elif spec.process_set not in self._members:
                    last.insert(0, Response(spec.kind, [request], f"{request.key}: its process set was removed"))
                else:
                    self._announce(rank, request, done)
        refused = [response for spec in doubtful for response in self._refuse(spec)]
        return self._fuse(done + self._ready_without_joined()) + refused + self._all_joined() + last

    def waiting(self) -> list[tuple[Key, list[int]]]:
        """What some ranks have asked for and others have not, with the ranks that are missing."""
        return [(key, _ranks(self._missing(p))) for key, p in self._table.items()]

    def conflicts(self) -> list[Spec]:
        """What to announce so that operations fail which some ranks call by the name of others' different operations.

        Ranks may do so for a moment, where each goes on to the other operation without waiting for the first.
        """
        found: dict[tuple[int, str], list[_Pending]] = {}
        for key, pending in self._table.items():
            if key.name:
                found.setdefault((key.process_set, key.name), []).append(pending)
        return [Spec("refuse", name, process_set) for (process_set, name), p in found.items() if self._in_conflict(p)]

    def _decode(self, message: bytes) -> list[Request]:
        length = int.from_bytes(message[:4], "little")
        end = 4 + 4 * length
        numbers = array("I", message[4:end])
        known = map(self._known.__getitem__, numbers[::2])
        cached = [r if r.number == n else Request(r.spec, n) for r, n in zip(known, numbers[1::2], strict=True)]
        fresh = json.loads(message[end:]) if len(message) > end else []
        return cached + [_request(fields) for fields in fresh]

    def _announce(self, rank: int, request: Request, done: list[_Pending]) -> None:
        key = request.key
        pending = self._table.get(key)
        if pending is None:
            pending = self._table[key] = _Pending(request)
        elif request is not pending.request and request.spec != pending.request.spec:
            pending.different = pending.different or {}
            pending.different[rank] = request.spec
        pending.ranks |= 1 << rank
        if pending.ranks == self._members[key.process_set]:
            done.append(self._table.pop(key))

    def _refuse(self, spec: Spec) -> list[Response]:
        """Errors for all operations of this name, where it is still so that ranks wait for one another."""
        found = [p for key, p in self._table.items() if (key.process_set, key.name) == (spec.process_set, spec.name)]
        if not self._in_conflict(found):
            return []
        for pending in found:
            del self._table[pending.request.key]
        who = "; ".join(f"{p.request.spec.kind} on rank {', '.join(map(str, _ranks(p.ranks)))}" for p in found)
        return [self._alone(p, f"{spec.name}: mismatched operations: {who}") for p in found]

    def _in_conflict(self, pending: list[_Pending]) -> bool:
        """Whether every rank has made one of these requests, and none has made two."""
        if len(pending) < 2:
            return False
        made = [rank for p in pending for rank in _ranks(p.ranks)]
        everyone = self._members[pending[0].request.spec.process_set] & ~self._joined
        return sorted(made) == _ranks(everyone)

    def _ready_without_joined(self) -> list[_Pending]:
        """What has become ready because ranks have joined that had not made the request."""
        if not self._joined:
            return []
        ready = [p for p in self._table.values() if not self._missing(p)]
        for pending in ready:
            del self._table[pending.request.key]
        return ready

    def _all_joined(self) -> list[Response]:
        if self._joined != self._members[0]:
            return []
        self._joined = 0
        return [Response("join", [Request(Spec("join"))], value=self._last)]

    def _missing(self, pending: _Pending) -> int:
        return self._members[pending.request.spec.process_set] & ~pending.ranks & ~self._joined

    def _fuse(self, done: list[_Pending]) -> list[Response]:
        """What is ready, in order; all-reductions of one sort as few responses of up to the threshold."""
        responses: list[Response] = []
        open_: dict[tuple[object, ...], tuple[Response, int]] = {}
        for pending in done:
            request = pending.request
            error = self._error(pending)
            if error or request.spec.kind != "allreduce":
                responses.append(self._alone(pending, error))
                continue
            self._remember(request)
            sort, nbytes = fusion(request.spec)
            response, used = open_.get(sort, (None, 0))
            if response is None or used + nbytes > self._threshold:
                response, used = Response("allreduce", []), 0
                responses.append(response)
            response.requests.append(request)
            open_[sort] = (response, used + nbytes)
        return responses

    def _alone(self, pending: _Pending, error: str) -> Response:
        request, spec = pending.request, pending.request.spec
        if error:
            return Response(spec.kind, [request], error)
        if spec.kind == "add":
            return self._add(request)
        if spec.kind == "remove":
            return self._remove(request)
        self._remember(request)
        return Response(spec.kind, [request])

    def _add(self, request: Request) -> Response:
        ranks = request.spec.shapes[0]
        if ranks in self.process_sets.values():
            return Response("add", [request], f"duplicate process set: there is one of ranks {list(ranks)} already")
        number, self._next_set = self._next_set, self._next_set + 1
        self.process_sets[number] = ranks
        self._members[number] = sum(1 << r for r in ranks)
        return Response("add", [request], value=number)

    def _remove(self, request: Request) -> Response:
        number = request.spec.root
        if number not in self.process_sets:
            return Response("remove", [request], f"there is no process set {number}")
        lost = [key for key in self._table if key.process_set == number]
        requests = [request, *(self._table.pop(key).request for key in lost)]
        del self.process_sets[number], self._members[number]
        return Response("remove", requests, value=number)

    def _remember(self, request: Request) -> None:
        """Give it a slot, that of the one that was unused for longest where there are no more."""
        slot = self._slots.pop(request.spec, None)
        if slot is None and len(self._known) < self._capacity:
            slot = len(self._known)
            self._known.append(request)
        elif slot is None and self._capacity:
            self._rounds.clear()
            self._slots_now = object()
            slot = self._slots.pop(next(iter(self._slots)))
            self._known[slot] = request
        if slot is not None:
            self._slots[request.spec] = slot

    def _error(self, pending: _Pending) -> str:
        spec = pending.request.spec
        if pending.different:
            return f"{pending.request.key}: {_difference(pending)}"
        if spec.kind in {"allgather", "reducescatter", "alltoall"} and () in spec.shapes:
            return f"{pending.request.key}: {spec.kind} needs a tensor of at least one dimension"
        absent = self._members[spec.process_set] & ~pending.ranks
        if absent and spec.kind not in {"allreduce", "barrier"}:
            rank = _ranks(absent)[0]
            return f"{pending.request.key}: rank {rank} has joined, and {spec.kind} is not possible after join()"
        return ""


@lru_cache(4096)
def fusion(spec: Spec) -> tuple[tuple[object, ...], int]:
    """What all-reductions that are fused have in common, and the bytes that this one adds."""
    nbytes = sum(math.prod(s) * ITEMSIZE[d] for s, d in zip(spec.shapes, spec.dtypes, strict=True))
    return (spec.process_set, frozenset(spec.dtypes), spec.op, spec.prescale, spec.postscale, spec.device), nbytes


def _asked_by_all(messages: Sequence[bytes]) -> tuple[int, ...] | None:
    """What every rank asks for in this round, where that is the same, in whatever order, and all of it has slots."""
    if any(len(m) != 4 + 4 * int.from_bytes(m[:4], "little") for m in messages):
        return None
    first, *others = (sorted(array("Q", message[4:])) for message in messages)
    return tuple(first) if all(other == first for other in others) else None


def _request(fields: list[Any]) -> Request:
    kind, name, process_set, dtypes, shapes, *rest, number = fields
    return Request(Spec(kind, name, process_set, tuple(dtypes), tuple(map(tuple, shapes)), *rest), number)


def _ranks(bits: int) -> list[int]:
    return [r for r in range(bits.bit_length()) if bits >> r & 1]


def _difference(pending: _Pending) -> str:
    """What the lowest rank and the next one that does not agree with it have; it is the same in any order of arrival."""
    different = pending.different or {}
    specs = {r: different.get(r, pending.request.spec) for r in _ranks(pending.ranks)}
    (first, spec), *others = specs.items()
    rank, other = next((r, s) for r, s in others if s != spec)
    for what, a, b in (
        ("numbers of tensors", len(spec.dtypes), len(other.dtypes)),
        ("data types", _list(spec.dtypes), _list(other.dtypes)),
        ("reduction operations", OPS[spec.op], OPS[other.op]),
        ("root ranks", spec.root, other.root),
        ("prescale factors", spec.prescale, other.prescale),
        ("postscale factors", spec.postscale, other.postscale),
        ("devices", spec.device, other.device),
        ("ranks" if spec.kind == "add" else "tensor shapes", _list(spec.shapes), _list(other.shapes)),
    ):
        if a != b:
            return f"mismatched {what}: rank {first} has {a}, rank {rank} has {b}"
    raise AssertionError("equal requests are no mismatch")


def _list(items: Iterable[object]) -> str:
    texts = [str(list(item)).replace(str(ANY), "*") if isinstance(item, tuple) else str(item) for item in items]
    return ", ".join(texts)
