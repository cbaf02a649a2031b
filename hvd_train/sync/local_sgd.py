"""Every rank steps on its own; every `period` steps all take the mean of their parameters."""

from __future__ import annotations

from hvd_train.errors import UserError
from hvd_train.options import Annotated, NonNegativeInt, PositiveInt
from hvd_train.sync._rounds import Rounds
from hvd_train.sync.base import Context


class LocalSGD(Rounds):
    """H local steps, then w <- mean(w_i) (Stich, arXiv 1805.09767).

    For the first `post_local` steps H is 1 (Lin et al., arXiv 1808.07217).
    """

    takes_parts = True

    def __init__(self, context: Context, period: int, post_local: int) -> None:
        super().__init__(context)
        if context.split and context.compresses:
            raise UserError(
                "sync.compression: what compressed rounds go on from would have to be saved for each part of the model; "
                "leave it out, or set parallel.pipeline and parallel.tensor to 1"
            )
        self._period, self._post_local = period, post_local

    def due(self, step: int) -> bool:
        local = step + 1 - self._post_local
        return local <= 0 or local % self._period == 0


def create(
    context: Context,
    *,
    period: Annotated[PositiveInt, "steps between two means: the bytes fall by this factor"] = 8,
    post_local: Annotated[NonNegativeInt, "first steps after each of which ranks take the mean"] = 0,
) -> LocalSGD:
    return LocalSGD(context, period, post_local)
