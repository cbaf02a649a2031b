"""Rounds of local steps.

At the end of a round all replicas become their mean, or the step of an outer optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.gradients.compression.base import BucketLayout, Compressor
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.reduction import load_state_of, seed_of, state_of
from hvd_train.sync.base import Context
from hvd_train.sync.replicas.flat import FlatParameters, copy_
from hvd_train.sync.replicas.replica_set import ReplicaSet
from hvd_train.sync.view import RESIDUALS, View


class Change:
    """Averages a flat tensor over all ranks and sends only its compressed change.

    The change is that since the previous average. The part that compression drops is added to the
    next change (error feedback, Basu et al., arXiv 1906.02367).
    """

    def __init__(
        self, shapes: Sequence[torch.Size], like: Tensor, compressor: Compressor, comm: Communicator, seed: int
    ) -> None:
        """`shapes` are those of the parameters in a tensor `like` this one.

        `seed` is of this rank and tensor alone.
        """
        self._layout, self._size = BucketLayout(shapes, like.device, seed), comm.size
        self._bucket = comm.allocate(like.numel() + len(shapes), like.dtype, like.device)
        self.reducer = (compressor if like.is_floating_point() else Identity()).reducer(self._layout, comm)

    def state(self) -> dict[str, Tensor]:
        """Return what compression has dropped on this rank."""
        return self.reducer.state()

    def average_(self, flat: Tensor, anchor: Tensor) -> None:
        """Replace `flat` by `anchor` plus the mean of the ranks' compressed changes since `anchor`.

        `anchor` is equal on all ranks.
        """
        change, flags = self._layout.split(self._bucket)
        torch.sub(flat, anchor, out=change)
        flags.fill_(1)
        self.reducer.sum_async_(self._bucket).wait()
        torch.add(anchor, change, alpha=1 / self._size, out=flat)


class CompressedChanges(View):
    """The changes of all flat tensors, if compression is configured."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._changes: list[Change] = []

    def extend(self, flat: FlatParameters) -> None:
        if self._context.compresses:
            self._changes += [self._change(flat, i) for i in range(len(self._changes), len(flat.tensors))]

    def average_(self, tensors: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        """Replace `tensors` by about their mean over ranks; collective."""
        for change, flat, anchor in zip(self._changes, tensors, anchors, strict=True):
            change.average_(flat, anchor)

    def rank_state(self) -> dict[str, Tensor]:
        return state_of(self._changes)

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        if not load_state_of(self._changes, state):
            self.unrestored.append(RESIDUALS)

    def _change(self, flat: FlatParameters, i: int) -> Change:
        shapes = [p.shape for p in flat.groups[i]]
        context = self._context
        seed = seed_of(context.seed, i, context.comm)
        return Change(shapes, flat.tensors[i], context.compressor, context.comm, seed)


class Anchors(View):
    """The parameters at the beginning of the round, equal on all ranks.

    No tensors unless they are `kept`.
    """

    def __init__(self, *, kept: bool) -> None:
        super().__init__()
        self._kept = kept
        self.tensors: list[Tensor] = []

    def extend(self, flat: FlatParameters) -> None:
        self._flat = flat
        if self._kept:
            self.tensors += [t.clone() for t in flat.tensors[len(self.tensors) :]]

    def update(self) -> None:
        """Begin a round."""
        if self._kept:
            copy_(self.tensors, self._flat.tensors)

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        return self._flat.named(self.tensors) if self._kept else iter(())

    def state_dict(self) -> dict[str, Any]:
        return {"anchors": self._flat.by_name(self.tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._flat.restore_(self.tensors, state["anchors"])


class Outer(Protocol):
    """An outer optimizer: a `View` that holds its state and steps once a round."""

    def extend(self, flat: FlatParameters) -> None:
        """Allocate state for the new entries of `flat.tensors`."""

    def step_(self, means: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        """Write to `means`, the means of all replicas, the result of a step from `anchors`."""


class Rounds:
    """Replicas that are averaged at the end of each round, and then advanced by `outer`, if given.

    Means travel compressed if compression is configured. `parts` are saved with the replicas.
    """

    def __init__(self, context: Context, outer: Any = None, parts: Sequence[View] = ()) -> None:
        """`outer` is a `View` that implements `Outer`."""
        self._outer: Outer | None = outer
        self._compresses = context.compresses
        self.inexact = outer is not None or context.compresses
        """True if a round ends elsewhere than at the exact mean, which evaluations within the round
        see."""
        self._anchors = Anchors(kept=self.inexact)
        self._changes = CompressedChanges(context)
        all_parts = [self._anchors, *([outer] if outer else []), self._changes, *parts]
        self.replicas = ReplicaSet(context.comm, all_parts, extend=self._extend)

    def average(self, step: int = -1) -> None:
        """End the round after `step`; collective."""
        self.replicas.average(self._average_ if self._compresses else None, step)
        if self._outer:
            self._outer.step_(self.replicas.flat.tensors, self._anchors.tensors)
        self._anchors.update()

    def finish(self) -> bool:
        """End an unfinished round; return True if the model then differs from the exact mean."""
        if not self.replicas.diverged:
            return False
        self.average()
        return self.inexact

    def _average_(self) -> None:
        self._changes.average_(self.replicas.flat.tensors, self._anchors.tensors)

    def _extend(self, flat: FlatParameters) -> None:
        self._anchors.extend(flat)
        self._changes.extend(flat)
        if self._outer:
            self._outer.extend(flat)
