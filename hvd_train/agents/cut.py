"""Ends the steps of slow workers early, once enough others have made theirs."""

from __future__ import annotations

import math
from collections import Counter

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError

_DONE = "done"
"""Kind of the message that a worker has made all steps of an epoch."""
_LEAST = 0.25
"""The share of the steps that every worker makes."""


class Cut:
    """Wijmans et al. 2020 (DD-PPO, arXiv 1911.00357): the rollouts of stragglers are cut.

    Workers announce by messages that they are done. A step of an environment reads what has arrived
    and waits for nothing.
    """

    def __init__(self, comm: Communicator, share: float, workers: int) -> None:
        """Open the connections of the ranks of `comm`; collective. UserError if the engine has none."""
        try:
            self._mailbox = comm.mailbox()
        except UserError as error:
            raise UserError(f"data.cut_at: {error}") from None
        self._others = [rank for rank in range(comm.size) if rank != comm.rank]
        self._needed = math.ceil(share * workers - 1e-9)
        self._done: Counter[int] = Counter()
        """The other workers that are done, by epoch."""

    def announce(self, epoch: int) -> None:
        """Tell the others that this worker has made all steps of `epoch`."""
        for rank in self._others:
            self._mailbox.send(rank, _DONE, epoch=epoch)

    def ends(self, epoch: int, made: int, steps: int) -> bool:
        """Return True if this worker, which has `made` so many of its `steps`, is to end `epoch` now."""
        if made < _LEAST * steps or made == steps:
            return False
        while (message := self._mailbox.receive(0)) is not None:
            if message.kind == _DONE:
                self._done[message.values["epoch"]] += 1
        return self._done[epoch] >= self._needed

    def close(self) -> None:
        self._mailbox.close()
