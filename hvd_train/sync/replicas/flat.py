"""A model's parameters in flat memory, so that all of them are sent as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator


class FlatParameters:
    """The trained parameters of `model` as views of one flat tensor per dtype and device.

    `comm` allocates the tensors, where it reduces fastest. Parameters keep their identity, shape
    and values. A parameter that is unfrozen later joins in the next `refresh`.
    """

    def __init__(self, model: nn.Module, comm: Communicator) -> None:
        self._comm = comm
        self._names = {p: name for name, p in model.named_parameters()}
        self._frozen = list(self._names)
        self.parameters: list[nn.Parameter] = []
        self.groups: list[list[nn.Parameter]] = []
        """The parameters of each entry of `tensors`, in order."""
        self.tensors: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Append entries to `tensors` for parameters that have been unfrozen since the last call.

        They must be the same on all ranks.
        """
        new = [p for p in self._frozen if p.requires_grad]
        if new:
            self._frozen = [p for p in self._frozen if not p.requires_grad]
        for kind in dict.fromkeys((p.dtype, p.device) for p in new):
            self._move([p for p in new if (p.dtype, p.device) == kind])

    def named(self, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each parameter and its view of `tensors`.

        `tensors` have the layout of `self.tensors`.
        """
        for flat, group in zip(tensors, self.groups, strict=True):
            for p, piece in zip(group, flat.split([p.numel() for p in group]), strict=True):
                yield self._names[p], piece.view(p.shape)

    def by_name(self, tensors: Sequence[Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return copies of the parameters' parts of `tensors`, by name.

        `tensors` have the layout of `self.tensors`, or are none at all.
        """
        return {prefix + name: piece.clone() for name, piece in self.named(tensors)} if tensors else {}

    @torch.no_grad()
    def restore_(self, tensors: Sequence[Tensor], state: dict[str, Tensor], prefix: str = "") -> None:
        """Copy back what `by_name` returned. A part that `state` lacks stays as it is."""
        for name, piece in self.named(tensors) if tensors else ():
            if prefix + name in state:
                piece.copy_(state[prefix + name])

    @torch.no_grad()
    def _move(self, parameters: list[nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters]
        flat = self._comm.allocate(sum(sizes), parameters[0].dtype, parameters[0].device)
        for p, piece in zip(parameters, flat.split(sizes), strict=True):
            piece.copy_(p.reshape(-1))
            p.data = piece.view(p.shape)
        self.tensors.append(flat)
        self.groups.append(parameters)
        self.parameters += parameters


def copy_(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    for own, other in zip(to, source, strict=True):
        own.copy_(other)
