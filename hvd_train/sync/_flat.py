"""A model's parameters in flat memory, so that all of them travel as one tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator


class FlatParameters:
    """The trained parameters of `model` as views of `tensors`, one for each dtype and device, where `comm` reduces fastest.

    The parameters keep their identity, shape and values. One that is unfrozen later joins with the next `refresh`.
    """

    def __init__(self, model: nn.Module, comm: Communicator) -> None:
        self._model, self._comm = model, comm
        self.parameters: list[nn.Parameter] = []
        self.tensors: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Take up what has been unfrozen since the last call, on all ranks alike."""
        new = [p for p in self._model.parameters() if p.requires_grad and not any(p is q for q in self.parameters)]
        for kind in dict.fromkeys((p.dtype, p.device) for p in new):
            self._move([p for p in new if (p.dtype, p.device) == kind])

    @torch.no_grad()
    def _move(self, parameters: list[nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters]
        flat = self._comm.allocate(sum(sizes), parameters[0].dtype, parameters[0].device)
        for p, piece in zip(parameters, flat.split(sizes), strict=True):
            piece.copy_(p.reshape(-1))
            p.data = piece.view(p.shape)
        self.tensors.append(flat)
        self.parameters += parameters
