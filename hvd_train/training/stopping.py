"""How ranks agree to stop after the same step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.training.accounting import Accounting


class StopAgreement:
    """Asks whether any rank of `comm` is `requested` to stop, without waiting for the answer.

    A question that is asked at the end of a step is answered at the end of the next step in which
    ranks synchronise. So all ranks stop after the same step.
    """

    def __init__(self, comm: Communicator, requested: Callable[[], bool], accounting: Accounting) -> None:
        self._comm, self._requested, self._accounting = comm, requested, accounting
        self._asked: tuple[Tensor, Work] | None = None

    def reached(self) -> bool:
        """Return the answer to the last question, and ask the next one if the answer is no.

        The call is collective.
        """
        if self._answer():
            return True
        flag = torch.tensor([int(self._requested())], dtype=torch.int32)
        with self._accounting.control():
            self._asked = flag, self._comm.all_reduce_async_(flag, "max")
        return False

    def close(self) -> None:
        """Wait for a question that is still under way."""
        self._answer()

    def _answer(self) -> bool:
        if self._asked is None:
            return False
        (flag, work), self._asked = self._asked, None
        work.wait()
        return bool(flag.item())
