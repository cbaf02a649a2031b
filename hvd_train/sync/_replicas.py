"""Ranks whose parameters differ while they train: each is a replica of its own and goes by its own gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hvd_train.errors import UserError
from hvd_train.optimizer import Build, ModelOptimizer
from hvd_train.packing import from_tensors, to_tensors
from hvd_train.resume import reading
from hvd_train.sync._flat import FlatParameters, copy_
from hvd_train.sync.base import OPTIMIZER, Context, OwnGradient

_PARAMETER, _DRIFTS = "parameter.", "drifts"


def drift(own: Sequence[Tensor], mean: Sequence[Tensor]) -> Tensor:
    """||w_i - mean|| / ||mean|| over all tensors together, float64; 0 where the mean is."""
    apart = _norm([a - b for a, b in zip(own, mean, strict=True)])
    return (apart / _norm(mean)).nan_to_num(0.0, 0.0, 0.0)


def incompressible(strategy: str) -> UserError:
    """What `strategy`, which sends parameters, says to compression."""
    return UserError(
        f"sync.compression: {strategy} sends whole parameters, which do not survive it; leave it out, "
        "or take local_sgd, diloco or adaptive, which send compressed changes"
    )


class Replicas(OwnGradient):
    """The base of strategies in which ranks step on their own and agree on parameters now and then.

    Evaluations and checkpoints see the mean of all replicas; a checkpoint keeps every rank's own beside it, with the state of
    its optimizer, and a run on another number of ranks goes on from the mean. Under loss scaling a rank whose gradient
    overflows skips its step alone.
    """

    compressible: ClassVar[bool] = False
    merges_rarely: ClassVar[bool] = False
    """Look at the drift when evaluating and saving too."""

    flat: FlatParameters

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.compresses and not self.compressible:
            raise incompressible(type(self).__module__.rpartition(".")[2])
        self.merges = 0
        self._apart, self._met = False, -1
        self._drifts = torch.zeros(2, dtype=torch.float64)
        """Their sum and their number."""
        self._restored: dict[str, Tensor] = {}
        self._agreement: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        """Whether ranks merge after `step`; equal on all of them."""
        return False

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._optimizer = super().optimizer(model, build)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.comm)
        self.follow()
        with reading("the checkpoint's state of sync.strategy"):
            if self._agreement:
                self.go_on(self._agreement)
            if self._restored:
                self.go_on_alone(self._restored)

    def on_gradients(self, step: int) -> None:
        self.flat.refresh()
        self.follow()

    def on_parameters(self, step: int) -> None:
        self._apart = True
        if self.due(step):
            self._met = step
            self.merge()

    def meets(self, step: int) -> bool:
        return step == self._met

    def finish(self) -> bool | None:
        if self._apart:
            self.merge()
        return None

    @torch.no_grad()
    def merge(self) -> None:
        """All replicas become one."""
        own = [t.clone() for t in self.flat.tensors]
        self.contribute_()
        self.average_()
        self._look(own)
        self.merges += 1
        self._apart = False

    def follow(self) -> None:
        """Keep beside new `flat.tensors` what this strategy remembers of each: before the first step, and after unfreezing."""

    def contribute_(self) -> None:
        """Let `flat.tensors` be what of this rank goes into the mean, where this is not what it computes with."""

    def average_(self) -> None:
        """Replace `flat.tensors` by their mean over ranks, or by about that."""
        for tensor in self.flat.tensors:
            self.comm.all_reduce_(tensor, "mean")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        if not self._apart:
            yield
            return
        own = [t.clone() for t in self.flat.tensors]
        self.contribute_()
        for tensor in self.flat.tensors:
            self.comm.all_reduce_(tensor, "mean")
        if self.merges_rarely:
            self._look(own)
        try:
            yield
        finally:
            copy_(self.flat.tensors, own)

    def leave(self) -> None:
        self.comm.all_reduce_(self._drifts, "mean")

    def figures(self) -> dict[str, float]:
        return {"drift": self._drift()}

    def summary(self) -> dict[str, Any]:
        return {"merges": self.merges, "drift": self._drift()}

    def state_dict(self) -> dict[str, Any]:
        return {"merges": self.merges, "apart": self._apart}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agreement = state

    def go_on(self, state: dict[str, Any]) -> None:
        """From what `state_dict` returned, at the start."""
        self.merges = state["merges"]

    def rank_state(self) -> dict[str, Tensor]:
        optimizer = to_tensors(self._optimizer.state(), OPTIMIZER)
        return {**optimizer, _DRIFTS: self._drifts.clone(), **self.flat.by_name(self.flat.tensors, _PARAMETER)}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._restored = state

    @torch.no_grad()
    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        """From what `rank_state` returned, at the start and after `go_on`."""
        self._apart = self._agreement["apart"]
        self._drifts = state[_DRIFTS]
        for p, name in self._optimizer.names.items():
            if _PARAMETER + name in state:
                p.copy_(state[_PARAMETER + name])
        if OPTIMIZER in state:
            self._optimizer.load_state(from_tensors(state, OPTIMIZER))

    def _drift(self) -> float:
        """The mean of those looked at, this rank's before `leave`."""
        total, count = self._drifts.tolist()
        return total / count if count else 0.0

    def _look(self, own: Sequence[Tensor]) -> None:
        self._drifts += torch.stack([drift(own, self.flat.tensors), torch.ones((), dtype=torch.float64)])


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t).double().cpu() for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)
