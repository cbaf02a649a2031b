"""Pruning in training: more and more weights become zero, and the others learn to do without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.config.compress_model import PruneSection
from hvd_train.errors import UserError
from hvd_train.slim.criterion import Criterion
from hvd_train.slim.layers import chosen
from hvd_train.slim.sparsity import choose, is_due, pack, sparsity_at, unpack

Named = Iterable[tuple[str, Tensor]]
_DROPPED, _CRITERION = "dropped", "criterion"


class Pruner:
    """Sets weights of `model` to zero, equal ones on all ranks of `comm`, and keeps them zero.

    Rank 0 chooses them from the parameters that `agreed` shows and sends a bit for each weight. So
    replicas that differ between averages have zeros at the same places, and their mean has them
    too. The gradients of these weights are zero from then on: they count in no norm, and
    compressors send none of them.
    """

    def __init__(
        self,
        section: PruneSection,
        model: nn.Module,
        comm: Communicator,
        agreed: Callable[[], AbstractContextManager[None]],
        copies: Callable[[], Named],
    ) -> None:
        """`copies` yields further tensors, by parameter name, from which training continues.

        Raise UserError if no trained layer is chosen.
        """
        self._section, self._model, self._comm = section, model, comm
        self._agreed, self._copies = agreed, copies
        self._criterion: Criterion = section.create(expected=Criterion)
        self._names = _weights(model, section.layers)
        self.dropped: dict[str, Tensor] = {}
        """The masks of the weights that are zero, by parameter name."""
        self._loaded = False

    def start(self) -> None:
        """Begin with the parameters of the first step."""
        if not self._loaded and self._comm.rank == 0:
            self._criterion.begin(self._weights())
        for name in self._names:
            self._model.get_parameter(name).register_hook(partial(self._without, name))

    def after_step(self, step: int) -> None:
        """Drop weights if this is due after `step` steps, and set all dropped ones to zero; collective."""
        if is_due(self._section.schedule, step):
            self._drop(sparsity_at(self._section.schedule, self._section.sparsity, step))
        self.mask_()

    @torch.no_grad()
    def mask_(self) -> None:
        """Set the dropped weights of the model, and of all copies of its parameters, to zero."""
        for name, tensor in (*self._model.named_parameters(), *self._copies()):
            if name in self.dropped:
                tensor.data.masked_fill_(self.dropped[name], 0)

    def is_complete(self, step: int) -> bool:
        """Return True if no further weight becomes zero after `step`."""
        return step >= self._section.schedule.end

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs; complete on rank 0."""
        dropped = {name: pack(mask) for name, mask in self.dropped.items()}
        return {_DROPPED: dropped, _CRITERION: {self._section.label: self._criterion.state()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`. A layer that it lacks has no zeros yet."""
        self._take({name: bits for name, bits in state[_DROPPED].items() if name in self._names})
        own = state[_CRITERION].get(self._section.label)
        if own is not None:
            self._criterion.load_state(own)
            self._loaded = True

    def sparsity(self) -> float:
        """Return the share of zeros in the weights of the chosen layers."""
        weights = self._weights().values()
        return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)

    @torch.no_grad()
    def _drop(self, share: float) -> None:
        """Let rank 0 choose `share` of the weights, and all ranks receive its choice; collective."""
        with self._agreed():
            masks = self._chosen(share) if self._comm.rank == 0 else {}
        packed = {}
        for name in self._names:
            size = -(-self._model.get_parameter(name).numel() // 8)
            packed[name] = pack(masks[name]) if masks else torch.empty(size, dtype=torch.uint8)
            self._comm.broadcast_(packed[name])
        self._take(packed)

    def _chosen(self, share: float) -> dict[str, Tensor]:
        return choose(self._criterion.scores(self._weights()), self.dropped, share, self._section.scope)

    def _take(self, packed: Mapping[str, Tensor]) -> None:
        self.dropped = {name: unpack(bits, self._model.get_parameter(name)) for name, bits in packed.items()}

    def _weights(self) -> dict[str, Tensor]:
        return {name: self._model.get_parameter(name).detach() for name in self._names}

    def _without(self, name: str, gradient: Tensor) -> Tensor:
        """Return the gradient of parameter `name`, zero where the weight is dropped."""
        return gradient.masked_fill(self.dropped[name], 0) if name in self.dropped else gradient


def _weights(model: nn.Module, layers: list[str]) -> list[str]:
    """Return the names of the trained weights of the chosen layers."""
    option = "compress_model.prune.layers"
    weights = {layer.weight for _, layer in chosen(model, layers, option) if layer.weight.requires_grad}
    names = [name for name, p in model.named_parameters() if p in weights]
    if not names:
        raise UserError(
            f"{option}: no chosen layer is trained; expected a linear or convolutional layer with gradients"
        )
    return names
