"""The contracts of the bench: a `Variant` is timed beside others in a `Case` that is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hvd_train.comm.base import Communicator

if TYPE_CHECKING:
    from hvd_train.bench.world import World

V = TypeVar("V", bound="Variant")


class Variant(ABC):
    """One way to do the work of a case. Every rank calls its methods in the same order."""

    comm: Communicator | None = None
    """Where this variant's bytes are counted."""

    @abstractmethod
    def run(self) -> None:
        """One iteration."""

    def resume(self) -> None:  # noqa: B027
        """Before a block of iterations, untimed."""

    def pause(self) -> None:  # noqa: B027
        """After a block, and once after creation: use no processor while others are timed."""

    def close(self) -> None:  # noqa: B027
        """After the case."""

    def facts(self) -> dict[str, Any]:
        """What else is worth recording of it."""
        return {}


class Case(Protocol[V]):
    """What all variants of a family do, such as the all-reduce of one size."""

    def create(self, name: str, world: World) -> V:
        """The variant `name`; any exception says that it is unavailable here, and why."""

    def check(self, variant: V, world: World) -> str | None:
        """Run a fresh variant a few times; what this rank finds wrong with the result."""
