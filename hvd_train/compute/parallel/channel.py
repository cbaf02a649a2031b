"""Tensors between two ranks, such as activations between the stages of a pipeline."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.messages import LOST
from hvd_train.state.packing import pack, unpack


class Channel:
    """Sends nested tensors between the ranks of `comm`, in order.

    A rank that waits for one uses no CPU time. All ranks make the channel together.
    """

    def __init__(self, comm: Communicator) -> None:
        self._mail = comm.mailbox()
        self._received: defaultdict[int, deque[Any]] = defaultdict(deque)

    def send(self, x: Any, dst: int) -> None:
        """Send a nesting of tensors, numbers and texts, and return at once."""
        tensors: dict[str, Tensor] = {}
        form = pack(x, "x", tensors)
        self._mail.send(dst, "nesting", *tensors.values(), form=form, names=list(tensors))

    def receive(self, src: int) -> Any:
        """Return the next nesting from rank `src`, in host memory.

        Raise ConnectionError if a rank has died.
        """
        while not self._received[src]:
            message = self._mail.receive()
            assert message is not None, "receive has no timeout"
            if message.kind == LOST:
                raise ConnectionError(f"the rank of pipeline stage {message.source + 1} is gone")
            named = dict(zip(message.values["names"], message.tensors, strict=True))
            self._received[message.source].append(unpack(message.values["form"], named))
        return self._received[src].popleft()

    def close(self) -> None:
        self._mail.close()
