"""The contracts of the bench.

A `Variant` is timed beside other variants in a `Case` that is the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hvd_train.comm.communicator import Communicator

if TYPE_CHECKING:
    from hvd_train.bench.world import World

V = TypeVar("V", bound="Variant")


class Backend:
    """The library that a variant runs on.

    By default it runs all the time, since MPI and gloo use no CPU while idle.
    """

    def resume(self) -> None:
        """Start the library.

        The bench calls this before a block of iterations and does not time it.
        """

    def pause(self) -> None:
        """Stop the library after a block, so that it uses no CPU while other variants are timed."""

    def close(self, comm: Communicator) -> None:
        """Close `comm`, a communicator on this library, after the last block."""
        comm.close()


class Variant(ABC):
    """One way to do the work of a case. Every rank calls its methods in the same order."""

    backend: Backend = Backend()
    comm: Communicator | None = None
    """The communicator that counts the bytes this variant sends, if there is one."""

    @abstractmethod
    def run(self) -> None:
        """Run one iteration."""

    def close(self) -> None:  # noqa: B027
        """Free what the variant holds, after the case."""

    def facts(self) -> dict[str, Any]:
        """Return further facts to record, as JSON values."""
        return {}


class Case(Protocol[V]):
    """The work that all variants of a family do, such as an all-reduce of one size."""

    def create(self, name: str, world: World) -> V:
        """Create the variant `name`.

        An exception in `measure.UNAVAILABLE` means that this machine lacks it.
        """

    def check(self, variant: V, world: World) -> str | None:
        """Run a fresh variant and return what is wrong with its result on this rank, or None."""
