"""The contract of a sync strategy: what ranks exchange, and when.

A strategy is a file in `sync/strategies/` whose `create(context, **options)` returns a
`SyncStrategy`. Only the trainer calls the hooks. A strategy overrides the hooks that it needs and
is put together from three values:

    members          who takes part, and which ranks wait for which
    gradient_scale   how the losses of samples and ranks add up
    view             which model and which figures are visible, and what is saved
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.gradients.compression.base import Compressor
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.state import model_state
from hvd_train.sync.membership import Membership
from hvd_train.sync.scale import GradientScale
from hvd_train.sync.view import View


def unreported(rank: int) -> None:
    """Report the loss of `rank` to nobody."""


@dataclass(frozen=True)
class Context:
    """What every strategy is made from."""

    comm: Communicator
    compressor: Compressor
    fusion_bytes: int | None = None
    """The bytes of gradients to reduce at once.

    None if the strategy is to measure them (`buckets.measured`).
    """
    seed: int = 0
    """The seed of the run."""
    split: bool = False
    """True if a rank has a part of the model only.

    `comm` then joins the ranks that have the same part.
    """
    folder: Path | None = None
    """The run folder, on rank 0's disk."""
    source: Path | None = None
    """The run folder from which this run resumes, or a checkpoint in it."""
    report: Callable[[int], None] = unreported
    """Reports to the command that a rank is lost; may be called from any thread."""
    score: Callable[[], float] | None = None
    """Returns the score of the model as it is on each rank, on held-out samples; more is better.

    Collective. None if there are no held-out samples. A strategy may call it after `start`.
    """

    @property
    def compresses(self) -> bool:
        return not isinstance(self.compressor, Identity)


class SyncStrategy:
    """Hooks around a step. Every rank of `members.world` calls them in the same order."""

    waited: float = 0.0
    """The seconds that communication has taken within backward passes."""

    fusion_bytes: int | None = None
    """The bytes of gradients that are reduced at once.

    None if the strategy does not fuse gradients.
    """

    learns_alone: ClassVar[bool] = False
    """True if a rank scales and normalises what an agent learns by its own experience, not by that of all."""

    def __init__(
        self,
        context: Context,
        *,
        members: Membership | None = None,
        gradient_scale: GradientScale | None = None,
        view: View | None = None,
        takes_parts: bool = False,
    ) -> None:
        """`takes_parts`: a part of a split model is enough for the strategy (`parallel` in YAML).

        UserError if the model is split and the strategy needs all of it.
        """
        if context.split and not takes_parts:
            raise UserError(
                "sync.strategy: this strategy needs the whole model on every rank; "
                "take 'allreduce' or 'local_sgd', or set parallel.pipeline and parallel.tensor to 1"
            )
        self.comm, self.takes_parts = context.comm, takes_parts
        self.members = members or Membership(context.comm)
        self.gradient_scale = gradient_scale or GradientScale(context.comm)
        self.view = view or View()

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        """Return the optimizer of the run; called once, before `start`.

        By default every rank updates all parameters.
        """
        return ModelOptimizer(model, build)

    def start(self, model: nn.Module) -> None:
        """Run before the first step.

        By default every rank copies all that the model of rank 0 holds.
        """
        model_state.broadcast_(model, self.comm)

    def on_loss(self, loss: float, samples: float) -> None:
        """Run after the forward passes, if this rank has samples in the step.

        `loss` is the mean over `samples` units: samples, or what the loss counts.
        """

    def on_backward(self, step: int) -> None:
        """Run before the last backward pass of a step, which completes the gradients."""

    def on_gradients(self, step: int) -> None:
        """Run after backward, before clipping and the optimizer.

        A rank without samples has run no backward pass.
        """

    def on_parameters(self, step: int) -> None:
        """Run after the optimizer."""

    def on_epoch(self, epoch: int) -> None:
        """Run after the last step of `epoch`, before it is evaluated."""

    def finish(self) -> bool | None:
        """Run after the last step, before the final evaluation.

        Not run if a signal stopped the run. Return True if the model differs from the model that
        was evaluated or saved after the last step.
        """
        return None
