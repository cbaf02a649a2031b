"""Replicas that go apart for a round of steps and then all become one, compressed on the way where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.compress.base import Compressor, Layout
from hvd_train.compress.none import Identity
from hvd_train.fusion import load_state_of, seed_of, state_of
from hvd_train.sync._flat import copy_
from hvd_train.sync._replicas import Replicas
from hvd_train.sync.base import RESIDUALS, Context


class Change:
    """The mean of a flat tensor over ranks, of whose change since the last one no more travels than a compressor lets through.

    What it holds back is added to what a later mean sends (Basu et al., arXiv 1906.02367).
    """

    def __init__(
        self, shapes: Sequence[torch.Size], like: Tensor, compressor: Compressor, comm: Communicator, seed: int
    ) -> None:
        self._layout, self._size = Layout(shapes, like.device, seed), comm.size
        self._bucket = comm.allocate(like.numel() + len(shapes), like.dtype, like.device)
        self.reducer = (compressor if like.is_floating_point() else Identity()).reducer(self._layout, comm)

    def state(self) -> dict[str, Tensor]:
        """What this rank has held back."""
        return self.reducer.state()

    def average_(self, flat: Tensor, anchor: Tensor) -> None:
        """Replace `flat` by about the mean of all ranks' `flat`, whose changes are since `anchor`, equal on all of them."""
        change, flags = self._layout.split(self._bucket)
        torch.sub(flat, anchor, out=change)
        flags.fill_(1)
        self.reducer.sum_async_(self._bucket).wait()
        torch.add(anchor, change, alpha=1 / self._size, out=flat)


class Rounds(Replicas):
    """w_i goes by its own gradients for a round, at whose end all take the mean, or what `advance_` makes of it."""

    compressible = True
    anchored: ClassVar[bool] = False
    """Remember what the replicas were at the beginning of the round."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self.anchors: list[Tensor] = []
        self._changes: list[Change] = []

    def follow(self) -> None:
        if self.anchored or self._context.compresses:
            self.anchors += [t.clone() for t in self.flat.tensors[len(self.anchors) :]]
        if self._context.compresses:
            self._changes += [self._change(i) for i in range(len(self._changes), len(self.flat.tensors))]

    def finish(self) -> bool:
        """The mean of replicas is what an evaluation sees anyway; what a compressor or `advance_` makes of it is not."""
        apart = self._apart
        super().finish()
        return apart and bool(self.anchors)

    def merge(self) -> None:
        super().merge()
        self.advance_()
        if self.anchors:
            copy_(self.anchors, self.flat.tensors)

    def advance_(self) -> None:
        """Go on from the mean, which is in `flat.tensors`."""

    def average_(self) -> None:
        if not self._changes:
            super().average_()
        for change, flat, anchor in zip(self._changes, self.flat.tensors, self.anchors, strict=False):
            change.average_(flat, anchor)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchors": self.flat.by_name(self.anchors)}

    def go_on(self, state: dict[str, Any]) -> None:
        super().go_on(state)
        self.flat.restore_(self.anchors, state["anchors"])

    def rank_state(self) -> dict[str, Tensor]:
        return {**super().rank_state(), **state_of(self._changes)}

    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        if not load_state_of(self._changes, state):
            self.begun_anew.append(RESIDUALS)

    def _change(self, i: int) -> Change:
        shapes = [p.shape for p in self.flat.groups[i]]
        seed = seed_of(self._context.seed, i, self.comm)
        return Change(shapes, self.flat.tensors[i], self._context.compressor, self.comm, seed)
