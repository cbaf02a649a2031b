"""The ranks of one host that load the same data: what a source may ask of them."""

from __future__ import annotations

from typing import Any, Protocol


class Node(Protocol):
    """This rank and the other ranks of its host, which call `gather` equally often."""

    @property
    def rank(self) -> int:
        """The number of this rank on the host, from 0."""

    @property
    def size(self) -> int:
        """The number of ranks on the host."""

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank of the host, in rank order.

        JSON must be able to represent the values. Raise the UserError of another rank, on any host,
        that failed before it came here.
        """


class Alone:
    """The `Node` of a process that loads data by itself."""

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


ALONE = Alone()
