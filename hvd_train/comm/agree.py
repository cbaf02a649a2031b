"""Makes all ranks take the same decision where a rank's own facts decide which collectives follow.

A rank knows its own memory, files, model and host. Ranks that decide differently issue different
collectives and wait for one another for ever. Every such decision goes through `agree` or `same`.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.errors import UserError

T = TypeVar("T")


def agree(comm: Communicator, value: T | None) -> T | None:
    """Return the value of the first rank whose value is not None; equal on every rank. Collective.

    JSON must be able to represent the value.
    """
    agreed: T | None = next((v for v in gather_json(comm, value) if v is not None), None)
    return agreed


def together(comm: Communicator, task: Callable[[], T]) -> T:
    """Run `task`, which uses no collective, on every rank and return its result. Collective.

    If it raises UserError on some rank, raise UserError on all ranks with the message, rank and
    host of the first.
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
    """Return the problem of the first rank that has one; collective.

    Names rank and host unless all have the same problem.
    """
    problems: list[str | None] = gather_json(comm, problem)
    differs = len(set(problems)) > 1
    return agree(comm, f"{problem}{here(comm)}" if problem and differs else problem)


def here(comm: Communicator) -> str:
    """Return this rank and its host for the end of a message; empty if there is only one rank."""
    return f" (rank {comm.rank} on {socket.gethostname()})" if comm.size > 1 else ""


def same(comm: Communicator, what: str, facts: Mapping[str, Any], advice: str) -> None:
    """Raise UserError on every rank if `facts` differ between ranks.

    It names the first difference, its ranks and hosts. JSON must be able to represent `facts`,
    whose names the user knows. Floats that agree to a relative 1e-3 are equal, since processors
    round differently. Collective; sends one hash if all facts are equal.
    """
    hashes = gather_json(comm, hashlib.sha256(json.dumps(facts).encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    first, *others = gather_json(comm, [socket.gethostname(), facts])
    for rank, (host, theirs) in enumerate(others, 1):
        text = difference(first[1], theirs, f"rank {rank}")
        if text:
            raise UserError(f"{what} differs between rank 0 on {first[0]} and rank {rank} on {host}: {text}; {advice}")


def difference(first: Mapping[str, Any], second: Mapping[str, Any], who: str) -> str | None:
    """Describe the first fact in which `second`, the facts of `who`, differs; None if equal."""
    for name, value in first.items():
        if name not in second:
            return f"{who} has no '{name}'"
        if not _equal(value, second[name]):
            return f"'{name}' is {value}, on {who} {second[name]}"
    extra = next((name for name in second if name not in first), None)
    if extra is not None:
        return f"only {who} has '{extra}' ({second[extra]})"
    moved = next((name for name, other in zip(first, second, strict=True) if name != other), None)
    if moved is None:
        return None
    number, other = (list(facts).index(moved) + 1 for facts in (first, second))
    return f"'{moved}' is number {number}, on {who} number {other}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-3)
    return bool(a == b)
