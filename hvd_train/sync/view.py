"""What is visible of a strategy: the model that is evaluated, metrics, a summary, saved state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.sync.membership import nothing

OPTIMIZER = "optimizer"
"""Prefix of the names in `rank_state` that hold the state of this rank's own optimizer."""

RESIDUALS = "gradients are sent in other buckets than before: the state of compression is reset"


class View:
    """The view of a strategy in which all ranks have the same model, and which keeps no state.

    The components of a strategy are views too: a view is put together from them.
    """

    confidential: bool = False
    """True if what a rank computes from its samples alone stays on the rank: training losses and
    its own state."""

    guarantees_privacy: bool = False
    """True if the strategy guarantees privacy per client.

    Each client must then keep the same samples in every epoch.
    """

    replicas: Communicator | None = None
    """The ranks whose parameters differ between averages.

    None if all ranks have equal parameters after each step.
    """

    has_model_of_step: bool = True
    """True if the model that evaluations see after a step is the mean of the ranks' parameters."""

    def __init__(self, on_agreed: Callable[[], None] = nothing) -> None:
        """`on_agreed` prepares the model for an evaluation or a checkpoint; collective."""
        self._on_agreed = on_agreed
        self.unrestored: list[str] = []
        """The parts of a checkpoint that did not fit and were not restored, a sentence each.

        Complete after `start`.
        """

    @property
    def evaluates_own(self) -> bool:
        """True if each rank evaluates its own model, on its part of the held-out samples."""
        return False

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Let the model have the parameters that all ranks agree on while it is evaluated or saved.

        Collective.
        """
        self._on_agreed()
        yield

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors from which parameters continue, beside the model's own, by parameter name.

        What changes single parameters of the model on all ranks, as pruning does, changes these too.
        """
        return iter(())

    def metrics(self) -> dict[str, float]:
        """Return what to record with the metrics of an evaluation."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Return entries of summary.json."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is equal on all ranks: tensors, numbers, text, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; called before `start`.

        `state` is empty if the checkpoint is of another strategy.
        """

    def rank_state(self) -> dict[str, Tensor]:
        """Return the state of this rank.

        Names of compression state begin with `reduction.REDUCER`.
        """
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Restore `rank_state`.

        Called after `load_state_dict` and not if the number of ranks has changed. `state` lacks the
        names that begin with `OPTIMIZER` or `reduction.REDUCER` if another optimizer or compressor
        cannot use them (`resume.RULES`).
        """
