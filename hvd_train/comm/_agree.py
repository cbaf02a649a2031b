"""One answer on all ranks, wherever a rank's own facts decide which collectives follow.

A rank decides from what it sees: its memory, its files, its model, its host. Ranks that decide differently issue different
collectives and wait for one another without end. Every such decision goes through `agree` or `same`.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hvd_train.comm.base import Communicator, gather_json
from hvd_train.errors import UserError

T = TypeVar("T")


def agree(comm: Communicator, value: T | None) -> T | None:
    """Return the value of the first rank that has one, that is not None; equal on every rank. Collective.

    Values are what JSON can carry.
    """
    found: T | None = next((v for v in gather_json(comm, value) if v is not None), None)
    return found


def together(comm: Communicator, task: Callable[[], T]) -> T:
    """Run `task`, which uses no collective, on every rank and return its result.

    Raises UserError on all ranks where one raises it, with the first such rank and its host.
    """
    try:
        result, problem = task(), None
    except UserError as error:
        problem = f"{error}{here(comm)}"
    refusal = agree(comm, problem)
    if refusal:
        raise UserError(refusal)
    return result


def first_problem(comm: Communicator, problem: str | None) -> str | None:
    """Return the problem of the first rank that has one, with that rank and its host unless all have the same; collective."""
    problems: list[str | None] = gather_json(comm, problem)
    alone = len(set(problems)) > 1
    return agree(comm, f"{problem}{here(comm)}" if problem and alone else problem)


def here(comm: Communicator) -> str:
    """This rank and its host, for the end of a message; nothing where there is only one rank."""
    return f" (rank {comm.rank} on {socket.gethostname()})" if comm.size > 1 else ""


def same(comm: Communicator, what: str, facts: Mapping[str, Any], advice: str) -> None:
    """Raise UserError on every rank where `facts` differ between ranks; it names the first difference, its ranks and hosts.

    `facts` are what JSON can carry, under the names that a user knows them by. Floats that agree to a thousandth are equal:
    processors round differently. Collective; costs one hash where all facts are equal.
    """
    hashes = gather_json(comm, hashlib.sha256(json.dumps(facts).encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    first, *others = gather_json(comm, [socket.gethostname(), facts])
    for rank, (host, theirs) in enumerate(others, 1):
        found = difference(first[1], theirs, f"rank {rank}")
        if found:
            raise UserError(f"{what} differs between rank 0 on {first[0]} and rank {rank} on {host}: {found}; {advice}")


def difference(first: Mapping[str, Any], second: Mapping[str, Any], who: str) -> str | None:
    """Describe the first fact in which `second`, the facts of `who`, differs from `first`; None where none does."""
    for name, value in first.items():
        if name not in second:
            return f"{who} has no '{name}'"
        if not _equal(value, second[name]):
            return f"'{name}' is {value}, on {who} {second[name]}"
    extra = next((name for name in second if name not in first), None)
    if extra is not None:
        return f"only {who} has '{extra}' ({second[extra]})"
    moved = next((name for name, other in zip(first, second, strict=True) if name != other), None)
    places = [list(facts).index(moved) + 1 for facts in (first, second)] if moved else []
    return f"'{moved}' is number {places[0]}, on {who} number {places[1]}" if moved else None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-3)
    return bool(a == b)
