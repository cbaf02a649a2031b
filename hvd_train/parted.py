"""A torch optimizer divided among ranks: each updates a part of the parameters, and the state comes together by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator, gather_json
from hvd_train.optimizer import Build, ModelOptimizer, State, clip


class Part(Protocol):
    """Consecutive elements of `parameter`, of which this rank's optimizer sees `shard`."""

    parameter: nn.Parameter
    shard: nn.Parameter

    def of(self, whole: Tensor) -> Tensor:
        """These elements of a tensor shaped like the parameter."""


class PartedOptimizer(ModelOptimizer):
    """Each rank of `group` updates `parts`, which together are all parameters; they follow one another in rank order."""

    parts: Sequence[Part]

    def __init__(self, model: nn.Module, build: Build, comm: Communicator, group: Communicator) -> None:
        self._comm, self._group = comm, group
        # A rank may have no part, and torch's optimizers refuse to have no parameter.
        nothing = nn.Parameter(next(p for p in model.parameters() if p.requires_grad).new_zeros(0, 0))
        super().__init__(model, lambda shards: build([nothing, *shards]))

    def clip(self, max_norm: float) -> None:
        gradients = [part.shard.grad for part in self.parts if part.shard.grad is not None]
        square = torch.zeros((), dtype=torch.float64)
        for gradient in gradients:
            square += torch.linalg.vector_norm(gradient).double().square()
        self._group.all_reduce_(square, "sum")
        clip(gradients, square, max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        self._comm.all_reduce_(found_inf, "max")

    def state(self) -> State:
        mine: dict[int, dict[str, Any]] = self.torch.state_dict()["state"]
        held = {self.names[part.parameter]: mine[i] for i, part in enumerate(self.parts, 1) if i in mine}
        known: dict[str, dict[str, list[Any]]] = {}
        for shapes in gather_json(self._group, {name: _shapes(values) for name, values in held.items()}):
            for name, fields in shapes.items():
                known.setdefault(name, fields)
        return {name: self._gathered(fields, held.get(name), name) for name, fields in sorted(known.items())}

    def _numbered(self, state: State) -> dict[int, dict[str, Any]]:
        numbered = enumerate(self.parts, 1)
        named = ((i, part, self.names[part.parameter]) for i, part in numbered)
        return {i: of_part(state[name], part.parameter.shape, part.of) for i, part, name in named if name in state}

    def _gathered(self, fields: dict[str, list[Any]], held: dict[str, Any] | None, name: str) -> dict[str, Any]:
        """The state of a whole parameter from that of its parts; numbers are the same in each."""
        shape = self.model.get_parameter(name).shape
        found: dict[str, Any] = {}
        for key, (dtype, dims, value) in fields.items():
            if dtype is None:
                found[key] = value
                continue
            mine = held[key].reshape(-1) if held else torch.empty(0, dtype=getattr(torch, dtype))
            parts = [part for part in self._group.all_gather(mine) if part.numel()]
            found[key] = parts[0].view(()) if not dims else torch.cat(parts).view(dims if len(parts) == 1 else shape)
        return found


def _shapes(values: dict[str, Any]) -> dict[str, list[Any]]:
    """Of each entry of a parameter's state its dtype and shape, or its value where it is no tensor."""
    return {
        key: [str(v.dtype).removeprefix("torch."), list(v.shape), None] if isinstance(v, Tensor) else [None, None, v]
        for key, v in values.items()
    }


def of_part(state: dict[str, Any], shape: torch.Size, of: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What of the state of a whole parameter of `shape` belongs to the part of it that `of` cuts out."""
    return {key: of(v) if isinstance(v, Tensor) and v.shape == shape else v for key, v in state.items()}
