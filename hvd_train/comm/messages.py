"""The contract of a mailbox: messages between single ranks, beside the collectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

LOST = "lost"
"""The kind of the message that reports a rank whose connection ended without a `close`."""


@dataclass(frozen=True)
class Message:
    """A message of rank `source`: a kind, values for JSON, and tensors in host memory."""

    source: int
    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)


class Mailbox(Protocol):
    """The messages of one rank. Messages of one sender arrive in the order in which they were sent.

    If the connection to a rank ends without a `close` there, a message of kind LOST follows its
    last message, and messages to this rank are dropped from then on. If the mailbox itself fails,
    `send` and `receive` raise ConnectionError from then on.
    """

    rank: int

    def send(self, dst: int, kind: str, *tensors: Tensor, **values: Any) -> None:
        """Send a message to rank `dst`, which may be this rank, and return at once.

        The caller may then change the tensors.
        """

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message of any rank, or None if none arrives within `timeout` seconds."""

    def close(self) -> None:
        """Send what is pending, announce the end to all ranks, and close the connections."""

    def hang_up(self) -> None:
        """Send what is pending and close the connections, as if this rank had died."""
