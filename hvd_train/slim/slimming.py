"""What `compress_model` does while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvd_train.slim.low_rank import saved
from hvd_train.slim.pruner import Pruner
from hvd_train.slim.ranges import Ranges

_SEEN = "seen"


@dataclass(frozen=True)
class Slimming:
    """The parts of a run that prune and quantise; by default none."""

    pruner: Pruner | None = None
    ranges: Ranges | None = None

    def start(self) -> None:
        """Begin with the parameters of the first step."""
        if self.pruner is not None:
            self.pruner.start()

    def after_step(self, step: int) -> None:
        """Act after `step` steps, once the strategy and the averaged model have taken theirs; collective."""
        if self.ranges is not None:
            self.ranges.after_step(step)
        if self.pruner is not None:
            self.pruner.after_step(step)

    def finish(self) -> None:
        """Keep zeros in the model that the strategy has made at the end."""
        if self.pruner is not None:
            self.pruner.mask_()

    def is_complete(self, step: int) -> bool:
        """Return True if the model has its final size after `step` steps."""
        return self.pruner is None or self.pruner.is_complete(step)

    def metrics(self) -> dict[str, float]:
        """Return what to record with the metrics of an evaluation."""
        return {} if self.pruner is None else {"sparsity": self.pruner.sparsity()}

    def state(self) -> dict[str, Any]:
        """Return the state that is equal on all ranks; complete on rank 0."""
        return {} if self.pruner is None else self.pruner.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`; empty if the checkpoint is of a run that did not prune."""
        if self.pruner is not None and state:
            self.pruner.load_state(state)

    def rank_state(self) -> dict[str, Tensor]:
        """Return the state of this rank."""
        return {} if self.ranges is None else {_SEEN: self.ranges.seen()}

    def load_rank_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `rank_state`."""
        if self.ranges is not None and _SEEN in state:
            self.ranges.load_seen(state[_SEEN])

    def summary(self, model: nn.Module) -> dict[str, Any]:
        """Return the size of `model` for summary.json: its parameters before and after, and its zeros."""
        own = list(model.parameters())
        now, nonzero = sum(p.numel() for p in own), sum(int((p != 0).sum()) for p in own)
        return {"parameters_before": now + saved(model), "parameters": now, "nonzero": nonzero, **self.metrics()}
