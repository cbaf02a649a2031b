"""Replicas: parameters of ranks that step on their own and average at times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import ModelOptimizer
from hvd_train.state.packing import from_tensors, to_tensors
from hvd_train.state.saved import reading
from hvd_train.sync.base import Context
from hvd_train.sync.membership import Membership, nothing
from hvd_train.sync.replicas.consensus import ConsensusDistance
from hvd_train.sync.replicas.flat import FlatParameters, copy_
from hvd_train.sync.view import OPTIMIZER, View

_PARAMETER, _DISTANCES = "parameter.", "drifts"


def refuse_compression(context: Context, strategy: str) -> None:
    """Raise UserError if compression is configured: `strategy` sends whole parameters."""
    if context.compresses:
        raise UserError(
            f"sync.compression: {strategy} sends whole parameters, which compression would destroy; leave it out, "
            "or take local_sgd, diloco or adaptive, which send compressed changes"
        )


def no_tensors(flat: FlatParameters) -> None:
    """Allocate nothing."""


class ReplicaSet(View):
    """One replica of the parameters per rank of `comm`.

    This rank's is `flat.tensors`, which the model computes with. Evaluations and checkpoints see
    the mean of all replicas. A checkpoint also holds every rank's replica and the state of its
    optimizer; a run on another number of ranks starts from the mean. With loss scaling, a rank
    whose gradient overflows skips its step alone.

    `parts` are components of the strategy with figures or state of their own, restored in their
    order.
    """

    flat: FlatParameters

    def __init__(
        self,
        comm: Communicator,
        parts: Sequence[View] = (),
        *,
        extend: Callable[[FlatParameters], None] = no_tensors,
        contribute_: Callable[[], None] = nothing,
        on_agreed: Callable[[], None] = nothing,
        measures: bool = True,
        measures_agreed: bool = False,
        evaluates_own: bool = False,
    ) -> None:
        """`extend` allocates the strategy's tensors for new entries of `flat.tensors`.

        New entries come at the start and after unfreezing. `contribute_` sets `flat.tensors` to
        this rank's summand of the mean, if it differs from the replica. `on_agreed` runs while
        evaluations see the mean. `measures`: measure the consensus distance at every average, with
        `measures_agreed` also at every evaluation and checkpoint. `evaluates_own`: evaluate
        replicas that have diverged, rather than their mean.
        """
        super().__init__(on_agreed)
        self._comm, self._parts, self._extend = comm, parts, extend
        self._contribute_, self._evaluates_own = contribute_, evaluates_own
        self._measures, self._measures_agreed = measures, measures_agreed
        self.replicas = comm
        self.has_model_of_step = not evaluates_own and contribute_ is nothing
        self.averages = 0
        self.diverged = False
        """True if ranks have stepped since the last average."""
        self.distance = ConsensusDistance(comm)
        self._averaged_at = -1
        self._saved: dict[str, Any] = {}
        self._saved_here: dict[str, Tensor] = {}

    @property
    def evaluates_own(self) -> bool:
        return self._evaluates_own and self.diverged

    def members(self, synchronises_at: Callable[[int], bool] | None = None) -> Membership:
        """Return the group of the ranks. By default they wait for one another when they average."""
        return Membership(self._comm, synchronises_at or self.averaged_at, self.distance.reduce)

    def averaged_at(self, step: int) -> bool:
        return step == self._averaged_at

    def use(self, optimizer: ModelOptimizer) -> ModelOptimizer:
        """Save the state of `optimizer` with the replica, and return it."""
        self.optimizer = optimizer
        return optimizer

    def start(self, model: nn.Module) -> None:
        """Make the replica of `model`, which is equal on all ranks, or restore the saved replica.

        Called after `use`.
        """
        self.flat = FlatParameters(model, self._comm)
        self._extend(self.flat)
        with reading("the checkpoint's state of sync.strategy"):
            if self._saved:
                self._restore(self._saved)
            if self._saved_here:
                self._restore_own(self._saved_here)
        self.unrestored += [text for part in self._parts for text in part.unrestored]

    def refresh(self) -> None:
        """Extend the replica by the parameters that have been unfrozen.

        Called before each step of the optimizer.
        """
        self.flat.refresh()
        self._extend(self.flat)

    def step(self) -> None:
        """Note that this rank has stepped on its own."""
        self.diverged = True

    @torch.no_grad()
    def average(self, average_: Callable[[], None] | None = None, step: int = -1) -> None:
        """Let all replicas become their mean, or what `average_` makes of `flat.tensors`.

        Called after `step`; collective.
        """
        own = [t.clone() for t in self.flat.tensors]
        self._contribute_()
        (average_ or self.mean_)()
        if self._measures:
            self.distance.measure(own, self.flat.tensors)
        self.averages += 1
        self.diverged, self._averaged_at = False, step

    def mean_(self) -> None:
        """Replace `flat.tensors` by their mean over ranks; collective."""
        for tensor in self.flat.tensors:
            self._comm.all_reduce_(tensor, "mean")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        with self._mean_of_replicas() if self.diverged else nullcontext():
            self._on_agreed()
            yield

    @contextmanager
    def _mean_of_replicas(self) -> Iterator[None]:
        own = [t.clone() for t in self.flat.tensors]
        self._contribute_()
        self.mean_()
        if self._measures_agreed:
            self.distance.measure(own, self.flat.tensors)
        try:
            yield
        finally:
            copy_(self.flat.tensors, own)

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        return (named for part in self._parts for named in part.copies())

    def metrics(self) -> dict[str, float]:
        return _merged({"drift": self.distance.average}, *(part.metrics() for part in self._parts))

    def summary(self) -> dict[str, Any]:
        own = {"merges": self.averages, "drift": self.distance.average}
        return _merged(own, *(part.summary() for part in self._parts))

    def state_dict(self) -> dict[str, Any]:
        own = {"merges": self.averages, "apart": self.diverged}
        return _merged(own, *(part.state_dict() for part in self._parts))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    def rank_state(self) -> dict[str, Tensor]:
        return _merged(
            to_tensors(self.optimizer.state(), OPTIMIZER),
            {_DISTANCES: self.distance.total.clone()},
            self.flat.by_name(self.flat.tensors, _PARAMETER),
            *(part.rank_state() for part in self._parts),
        )

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._saved_here = state

    def _restore(self, state: dict[str, Any]) -> None:
        self.averages = state["merges"]
        for part in self._parts:
            part.load_state_dict(state)

    @torch.no_grad()
    def _restore_own(self, state: dict[str, Tensor]) -> None:
        self.diverged = self._saved["apart"]
        self.distance.total = state[_DISTANCES]
        for p, name in self.optimizer.names.items():
            if _PARAMETER + name in state:
                p.copy_(state[_PARAMETER + name])
        if OPTIMIZER in state:
            self.optimizer.load_state(from_tensors(state, OPTIMIZER))
        for part in self._parts:
            part.load_rank_state(state)


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
