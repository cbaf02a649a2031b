"""The contract of a sync strategy: what ranks agree on, and when.

A strategy is a file in this package whose `create(context, **options)` returns a `SyncStrategy`. The trainer alone calls
the hooks; a strategy overrides those it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvd_train.comm.base import Communicator
from hvd_train.compress.base import Compressor
from hvd_train.compress.none import Identity
from hvd_train.optimizer import Build, ModelOptimizer


@dataclass(frozen=True)
class Context:
    """What every strategy is given: the ranks, the compressor, the bytes of gradients to reduce at once, the run's seed.

    `fusion_bytes` is None where the strategy is to measure them (`fusion.measured`).
    """

    comm: Communicator
    compressor: Compressor
    fusion_bytes: int | None = None
    seed: int = 0

    @property
    def compresses(self) -> bool:
        return not isinstance(self.compressor, Identity)


class SyncStrategy:
    """Hooks around a step; every rank calls them in the same order.

    A rank's gradient is that of the sum of its samples' losses over the number of samples of all ranks: the sum over ranks is
    the gradient of the whole step. `gradient_scale` multiplies it, for strategies in which a rank goes by its own alone.
    """

    gradient_scale: float = 1.0

    def __init__(self, context: Context) -> None:
        self.comm = context.comm

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        """Who updates which parameters: by default every rank all of them. Called once, before `start`."""
        return ModelOptimizer(model, build)

    def start(self, model: nn.Module) -> None:
        """Before the first step: by default every rank takes over the parameters and buffers of rank 0."""
        for tensor in model.state_dict(keep_vars=True).values():
            self.comm.broadcast_(tensor.data)

    def on_backward(self, step: int) -> None:
        """Before the last backward pass of a step: a gradient that it completes is final."""

    def on_gradients(self, step: int) -> None:
        """After backward, before clipping and the optimizer. A rank without samples comes here without any backward pass."""

    def on_parameters(self, step: int) -> None:
        """After the optimizer."""

    def serve(self) -> bool:
        """Before training: True says that this rank was a server and is done."""
        return False

    def finish(self) -> None:
        """After the last step, before the final evaluation."""

    def summary(self) -> dict[str, Any]:
        """What the strategy chose by itself, for the run's summary.json."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs and every rank has alike, of tensors, numbers, text, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, before `start`."""

    def rank_state(self) -> dict[str, Tensor]:
        """What resuming needs and is this rank's own."""
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """The reverse of `rank_state`, before `start`; not called where the number of ranks has changed."""
