"""Ranks whose parameters differ while they train: each is a replica of its own and goes by its own gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hvd_train.checkpoint import pack, unpack
from hvd_train.optimizer import Build, ModelOptimizer
from hvd_train.sync._flat import FlatParameters
from hvd_train.sync.base import Context, SyncStrategy

_PARAMETER, _STRUCTURE = "parameter.", "optimizer.json"


class Replicas(SyncStrategy):
    """The base of strategies in which ranks step on their own and agree on parameters now and then.

    Evaluations and checkpoints see the mean of all replicas; a checkpoint keeps every rank's own beside it, with the state of
    its optimizer, and a run on another number of ranks goes on from the mean.
    """

    flat: FlatParameters

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._restored: dict[str, Tensor] = {}

    def divisor(self, own: int, total: int) -> int:
        return max(own, 1)

    def objective(self, part: float) -> float:
        return part

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._optimizer = super().optimizer(model, build)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.comm)
        if self._restored:
            self._go_on_from(self._restored)

    @torch.no_grad()
    def merge(self) -> None:
        """Every rank takes the mean of all replicas."""
        self.flat.refresh()
        for tensor in self.flat.tensors:
            self.comm.all_reduce_(tensor, "mean")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        own = [t.clone() for t in self.flat.tensors]
        self.merge()
        try:
            yield
        finally:
            for tensor, before in zip(self.flat.tensors, own, strict=True):
                tensor.copy_(before)

    def rank_state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(pack(self._optimizer.state(), "optimizer", tensors)).encode()
        tensors[_STRUCTURE] = torch.frombuffer(bytearray(structure), dtype=torch.uint8)
        for name, p in self._named():
            tensors[_PARAMETER + name] = p.detach().clone()
        return tensors

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._restored = state

    @torch.no_grad()
    def _go_on_from(self, state: dict[str, Tensor]) -> None:
        for name, p in self._named():
            p.copy_(state[_PARAMETER + name])
        structure = json.loads(state[_STRUCTURE].numpy().tobytes())
        self._optimizer.load_state(unpack(structure, state))

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(self._optimizer.names[p], p) for p in self.flat.parameters]
