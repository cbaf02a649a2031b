"""The negotiation of ranks before data moves: a state machine that all ranks run on the same input.

In each round every rank contributes its new requests, and all ranks receive all contributions in
rank order. From this input alone each rank computes the same responses in the same order, so there
is no coordinator. Readiness, fusion and errors are therefore equal on all ranks. A request that has
been answered before is sent as one small number, its slot.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from hvd_train.torch.requests import ANY, OPS, Key, Request, Response, Spec, fusion

ROUNDS = 64
"""Number of rounds whose responses are cached, because training repeats the same requests."""


class _Pending:
    """A request that some ranks have made.

    `ranks` is a bit set. `different` has the specs that differ from the spec of `request`, by rank.
    """

    __slots__ = ("different", "ranks", "request")

    def __init__(self, request: Request) -> None:
        self.request, self.ranks = request, 0
        self.different: dict[int, Spec] | None = None


class Negotiation:
    """The negotiation of `size` ranks.

    The request cache has `capacity` slots. All-reductions are fused up to `threshold` bytes.
    """

    def __init__(self, size: int, capacity: int = 1024, threshold: int = 128 << 20) -> None:
        self.process_sets: dict[int, tuple[int, ...]] = {0: tuple(range(size))}
        self._members = {0: (1 << size) - 1}
        self._next_set = 1
        self._capacity, self._threshold = capacity, threshold
        self._slots: dict[Spec, int] = {}
        self._generation = object()
        """The generation of slots. A new object replaces it when a slot changes its spec."""
        self._cached: list[Request] = []
        self._rounds: dict[tuple[int, ...], list[Response]] = {}
        self._pending: dict[Key, _Pending] = {}
        self._joined = 0
        self._last_joined = 0

    def encode(self, requests: Iterable[Request]) -> bytes:
        """Return this rank's contribution to the next round."""
        cached, fresh, generation = array("I"), [], self._generation
        for request in requests:
            if request.slots is not generation:
                slot = self._slots.get(request.spec)
                if slot is None:
                    fresh.append((*request.spec, request.number))
                    continue
                request.slot, request.slots = slot, generation
            cached.append(request.slot)
            cached.append(request.number)
        head = len(cached).to_bytes(4, "little") + cached.tobytes()
        return head + json.dumps(fresh).encode() if fresh else head

    def advance(self, messages: Sequence[bytes]) -> list[Response]:
        """Return the responses to the contributions of one round, given in rank order."""
        common = None if self._pending or self._joined else _common_requests(messages)
        if common in self._rounds:
            return self._rounds[common]
        responses = self._advance(messages)
        if common and all(r.kind == "allreduce" and not r.error for r in responses):
            if len(self._rounds) == ROUNDS:
                self._rounds.clear()
            self._rounds[common] = responses
        return responses

    def _advance(self, messages: Sequence[bytes]) -> list[Response]:
        complete: list[_Pending] = []
        last: list[Response] = []
        conflicts: list[Spec] = []
        for rank, message in enumerate(messages):
            for request in self._decode(message):
                spec = request.spec
                if spec.kind == "shutdown":
                    last = last or [Response("shutdown", [], spec.name or f"rank {rank} has shut down")]
                elif spec.kind == "join":
                    self._joined |= 1 << rank
                    self._last_joined = rank
                elif spec.kind == "refuse":
                    conflicts.append(spec)
                elif spec.process_set not in self._members:
                    last.insert(0, Response(spec.kind, [request], f"{request.key}: its process set was removed"))
                else:
                    self._announce(rank, request, complete)
        refused = [response for spec in conflicts for response in self._refuse(spec)]
        return self._fuse(complete + self._complete_without_joined()) + refused + self._all_joined() + last

    def waiting(self) -> list[tuple[Key, list[int]]]:
        """Return the requests that only some ranks have made, with the missing ranks."""
        return [(key, _ranks(self._missing(p))) for key, p in self._pending.items()]

    def conflicts(self) -> list[Spec]:
        """Return the requests that make different operations with the same name fail.

        Such a conflict may be temporary: a rank may issue both operations without waiting for the
        first. The caller announces a conflict only if it lasts.
        """
        by_name: dict[tuple[int, str], list[_Pending]] = {}
        for key, pending in self._pending.items():
            if key.name:
                by_name.setdefault((key.process_set, key.name), []).append(pending)
        return [Spec("refuse", name, process_set) for (process_set, name), p in by_name.items() if self._in_conflict(p)]

    def _decode(self, message: bytes) -> list[Request]:
        length = int.from_bytes(message[:4], "little")
        end = 4 + 4 * length
        numbers = array("I", message[4:end])
        slots = map(self._cached.__getitem__, numbers[::2])
        cached = [r if r.number == n else Request(r.spec, n) for r, n in zip(slots, numbers[1::2], strict=True)]
        fresh = json.loads(message[end:]) if len(message) > end else []
        return cached + [_request(fields) for fields in fresh]

    def _announce(self, rank: int, request: Request, complete: list[_Pending]) -> None:
        """Record the request of `rank`, and move it to `complete` if all ranks have made it."""
        key = request.key
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(request)
        elif request is not pending.request and request.spec != pending.request.spec:
            pending.different = pending.different or {}
            pending.different[rank] = request.spec
        pending.ranks |= 1 << rank
        if pending.ranks == self._members[key.process_set]:
            complete.append(self._pending.pop(key))

    def _refuse(self, spec: Spec) -> list[Response]:
        """Return an error for each operation with this name if they are still in conflict."""
        name = spec.process_set, spec.name
        same_name = [p for key, p in self._pending.items() if (key.process_set, key.name) == name]
        same_name.sort(key=lambda pending: _ranks(pending.ranks))
        if not self._in_conflict(same_name):
            return []
        for pending in same_name:
            del self._pending[pending.request.key]
        by_kind = "; ".join(f"{p.request.spec.kind} on rank {', '.join(map(str, _ranks(p.ranks)))}" for p in same_name)
        return [self._respond(p, f"{spec.name}: mismatched operations: {by_kind}") for p in same_name]

    def _in_conflict(self, pending: list[_Pending]) -> bool:
        """Return True if every rank has made exactly one of these requests."""
        if len(pending) < 2:
            return False
        made = [rank for p in pending for rank in _ranks(p.ranks)]
        expected = self._members[pending[0].request.spec.process_set] & ~self._joined
        return sorted(made) == _ranks(expected)

    def _complete_without_joined(self) -> list[_Pending]:
        """Remove and return the requests that all ranks have made except those that have joined."""
        if not self._joined:
            return []
        complete = [p for p in self._pending.values() if not self._missing(p)]
        for pending in complete:
            del self._pending[pending.request.key]
        return complete

    def _all_joined(self) -> list[Response]:
        if self._joined != self._members[0]:
            return []
        self._joined = 0
        return [Response("join", [Request(Spec("join"))], value=self._last_joined)]

    def _missing(self, pending: _Pending) -> int:
        return self._members[pending.request.spec.process_set] & ~pending.ranks & ~self._joined

    def _fuse(self, complete: list[_Pending]) -> list[Response]:
        """Return the responses in order.

        Compatible all-reductions share a response up to the threshold.
        """
        responses: list[Response] = []
        buckets: dict[tuple[object, ...], tuple[Response, int]] = {}
        for pending in complete:
            request = pending.request
            error = self._error(pending)
            if error or request.spec.kind != "allreduce":
                responses.append(self._respond(pending, error))
                continue
            self._remember(request)
            key, nbytes = fusion(request.spec)
            response, used = buckets.get(key, (None, 0))
            if response is None or used + nbytes > self._threshold:
                response, used = Response("allreduce", []), 0
                responses.append(response)
            response.requests.append(request)
            buckets[key] = (response, used + nbytes)
        return responses

    def _respond(self, pending: _Pending, error: str) -> Response:
        """Return the response to a request that is not fused."""
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
            return Response(
                "add", [request], f"duplicate process set: the process set of ranks {list(ranks)} already exists"
            )
        number, self._next_set = self._next_set, self._next_set + 1
        self.process_sets[number] = ranks
        self._members[number] = sum(1 << r for r in ranks)
        return Response("add", [request], value=number)

    def _remove(self, request: Request) -> Response:
        number = request.spec.root
        if number not in self.process_sets:
            return Response("remove", [request], f"there is no process set {number}")
        removed = [key for key in self._pending if key.process_set == number]
        requests = [request, *(self._pending.pop(key).request for key in removed)]
        del self.process_sets[number], self._members[number]
        return Response("remove", requests, value=number)

    def _remember(self, request: Request) -> None:
        """Give the request a slot. A full cache replaces the least recently used request."""
        slot = self._slots.pop(request.spec, None)
        if slot is None and len(self._cached) < self._capacity:
            slot = len(self._cached)
            self._cached.append(request)
        elif slot is None and self._capacity:
            self._rounds.clear()
            self._generation = object()
            slot = self._slots.pop(next(iter(self._slots)))
            self._cached[slot] = request
        if slot is not None:
            self._slots[request.spec] = slot

    def _error(self, pending: _Pending) -> str:
        """Return why a complete request cannot be carried out, or an empty text."""
        spec = pending.request.spec
        if pending.different:
            return f"{pending.request.key}: {_difference(pending)}"
        if spec.kind in {"allgather", "reducescatter", "alltoall"} and () in spec.shapes:
            return f"{pending.request.key}: {spec.kind} needs a tensor of at least one dimension"
        absent = self._members[spec.process_set] & ~pending.ranks
        if absent and spec.kind not in {"allreduce", "barrier"}:
            rank = _ranks(absent)[0]
            return f"{pending.request.key}: rank {rank} has joined, and join() allows no {spec.kind} after it; use allreduce"
        return ""


def _common_requests(messages: Sequence[bytes]) -> tuple[int, ...] | None:
    """Return the slots and numbers of this round's requests if all ranks made the same cached ones.

    The order may differ between ranks. Otherwise return None.
    """
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
    """Return the first difference between the lowest rank and the next rank that differs from it.

    It does not depend on the order of arrival.
    """
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
    raise AssertionError("the specs of a mismatch are equal")


def _list(items: Iterable[object]) -> str:
    texts = [str(list(item)).replace(str(ANY), "*") if isinstance(item, tuple) else str(item) for item in items]
    return ", ".join(texts)
