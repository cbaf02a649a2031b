"""An optimizer divided among ranks: each rank updates some pieces of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.gradients.groups import Key
from hvd_train.gradients.optimizer import Build, ModelOptimizer, State, clip, squared_norm


class OwnedPiece(Protocol):
    """Consecutive elements of `parameter` that this rank updates.

    Its torch optimizer holds them as `shard`.
    """

    parameter: nn.Parameter
    shard: nn.Parameter

    def of(self, whole: Tensor) -> Tensor:
        """Return these elements of a tensor shaped like the parameter."""


class Partition(Protocol):
    """A division of the parameters among the ranks of a group.

    The pieces of all ranks, in rank order, cover all parameters.
    """

    @property
    def owned(self) -> Sequence[OwnedPiece]:
        """The pieces of this rank."""

    def adopt(self, parameters: list[nn.Parameter]) -> Sequence[OwnedPiece]:
        """Divide newly trained `parameters`; return the pieces of this rank; collective."""


class PartitionedOptimizer(ModelOptimizer):
    """Updates the pieces that this rank owns of `partition`, which divides parameters among `group`.

    `comm` joins the ranks that skip a step together.
    """

    def __init__(
        self, model: nn.Module, build: Build, comm: Communicator, group: Communicator, partition: Partition
    ) -> None:
        self._comm, self._group, self.partition = comm, group, partition
        # torch's optimizers reject an empty list of parameters, and a rank may own nothing.
        trained = (p for p in model.parameters() if p.requires_grad)
        self._nothing = [nn.Parameter(next(trained, torch.zeros(0)).new_zeros(0, 0))]
        super().__init__(model, build)

    def square(self) -> float:
        square = torch.zeros((), dtype=torch.float64)
        for gradient in self._gradients():
            square += squared_norm(gradient).cpu()
        self._group.all_reduce_(square, "sum")
        return float(square)

    def clip(self, max_norm: float) -> None:
        clip(self._gradients(), self.square(), max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        self._comm.all_reduce_(found_inf, "max")

    def state(self) -> State:
        numbered: dict[int, dict[str, Any]] = self.torch.state_dict()["state"]
        own = {name: numbered[i] for i, (name, _) in self._owned().items() if i in numbered}
        described: dict[str, dict[str, list[Any]]] = {}
        for descriptions in gather_json(self._group, {name: _described(values) for name, values in own.items()}):
            for name, entries in descriptions.items():
                described.setdefault(name, entries)
        return {name: self._gathered(entries, own.get(name), name) for name, entries in sorted(described.items())}

    def _gradients(self) -> list[Tensor]:
        return [piece.shard.grad for piece in self.partition.owned if piece.shard.grad is not None]

    def _take(self, parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(piece.parameter, piece.shard) for piece in self.partition.adopt(parameters)]

    def _by_group(self, parameters: list[nn.Parameter]) -> dict[Key, list[nn.Parameter]]:
        found = super()._by_group(parameters)
        found[()] = [*self._nothing, *found[()]]
        self._nothing = []
        return found

    def _owned(self) -> dict[int, tuple[str, OwnedPiece]]:
        """Return the pieces of this rank, each after the name of its parameter, by number in the torch optimizer."""
        numbers = {p: i for i, p in enumerate(self._parameters())}
        return {numbers[piece.shard]: (self.names[piece.parameter], piece) for piece in self.partition.owned}

    def _numbered(self, state: State) -> dict[int, dict[str, Any]]:
        return {
            i: of_piece(state[name], piece.parameter.shape, piece.of)
            for i, (name, piece) in self._owned().items()
            if name in state
        }

    def _gathered(self, entries: dict[str, list[Any]], own: dict[str, Any] | None, name: str) -> dict[str, Any]:
        """Join the state of parameter `name` from its pieces. Numbers are equal in all of them."""
        shape = self.model.get_parameter(name).shape
        state: dict[str, Any] = {}
        for key, (dtype, dims, value) in entries.items():
            if dtype is None:
                state[key] = value
                continue
            mine = own[key].reshape(-1) if own else torch.empty(0, dtype=getattr(torch, dtype))
            flat = [piece for piece in self._group.all_gather(mine) if piece.numel()]
            state[key] = flat[0].view(()) if not dims else torch.cat(flat).view(dims if len(flat) == 1 else shape)
        return state


def _described(values: dict[str, Any]) -> dict[str, list[Any]]:
    """Return [dtype, shape, None] for tensors of a state, and [None, None, value] for the rest."""
    return {
        key: [str(v.dtype).removeprefix("torch."), list(v.shape), None] if isinstance(v, Tensor) else [None, None, v]
        for key, v in values.items()
    }


def of_piece(state: dict[str, Any], shape: torch.Size, of: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return the state of one piece of a parameter of `shape`.

    `of` cuts it out of the entries of `state` that have this shape.
    """
    return {key: of(v) if isinstance(v, Tensor) and v.shape == shape else v for key, v in state.items()}
