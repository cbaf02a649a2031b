"""Every rank steps on its own; every `period` steps all ranks average their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hvd_train.config.options import Annotated, NonNegativeInt, PositiveInt
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.membership import every
from hvd_train.sync.replicas.rounds import Rounds
from hvd_train.sync.scale import OwnMean


class LocalSGD(SyncStrategy):
    """Local steps, then w <- mean(w_i) after each step that is `due`, or a step of `outer`.

    Stich, arXiv 1805.09767. An unfinished last round is averaged too.
    """

    def __init__(
        self, context: Context, due: Callable[[int], bool], outer: Any = None, *, takes_parts: bool = False
    ) -> None:
        """`due(step)` is equal on all ranks; for `outer` see `Rounds`."""
        self._rounds, self._due = Rounds(context, outer), due
        self._replicas = self._rounds.replicas
        super().__init__(
            context,
            members=self._replicas.members(),
            gradient_scale=OwnMean(context.comm),
            view=self._replicas,
            takes_parts=takes_parts,
        )

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        return self._replicas.use(super().optimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._replicas.start(model)

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    def on_parameters(self, step: int) -> None:
        self._replicas.step()
        if self._due(step):
            self._rounds.average(step)

    def finish(self) -> bool:
        return self._rounds.finish()


def ends_round(first: int, period: int) -> Callable[[int], bool]:
    """Return a function that returns True for each of the `first` steps, then for every `period`-th.

    Post-local SGD: Lin et al., arXiv 1808.07217.
    """
    due = every(period)
    return lambda step: step < first or due(step - first)


def create(
    context: Context,
    *,
    period: Annotated[PositiveInt, "steps between two averages: the bytes fall by this factor"] = 8,
    post_local: Annotated[NonNegativeInt, "first steps after each of which ranks average"] = 0,
) -> LocalSGD:
    if context.split and context.compresses:
        raise UserError(
            "sync.compression: compressed rounds keep tensors that would have to be saved for each part of the model; "
            "leave it out, or set parallel.pipeline and parallel.tensor to 1"
        )
    return LocalSGD(context, ends_round(post_local, period), takes_parts=True)
