"""Tensors between single ranks, such as activations between the stages of a pipeline."""

from __future__ import annotations

from collections import defaultdict, deque

from torch import Tensor

from hvd_train.comm._mailbox import LOST
from hvd_train.comm.base import Communicator


class Wire:
    """What a rank of `comm` sends to another arrives there in that order; whoever waits for it takes no time of a core.

    Made by all ranks together.
    """

    def __init__(self, comm: Communicator) -> None:
        self._mail = comm.mailbox()
        self._arrived: defaultdict[int, deque[Tensor]] = defaultdict(deque)

    def send(self, x: Tensor, dst: int) -> None:
        """Send `x` and return at once."""
        self._mail.send(dst, "tensor", x)

    def receive(self, src: int) -> Tensor:
        """The next tensor from rank `src`, in host memory; ConnectionError where that rank has gone."""
        while not self._arrived[src]:
            message = self._mail.receive()
            assert message is not None, "receive waits as long as it takes"
            if message.kind == LOST:
                raise ConnectionError(f"the rank of pipeline stage {message.source + 1} is gone")
            self._arrived[message.source].append(message.tensors[0])
        return self._arrived[src].popleft()

    def close(self) -> None:
        self._mail.close()
