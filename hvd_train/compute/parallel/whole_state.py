"""Converts between the state of a whole model and the part of it that a rank has.

Checkpoints hold whole states only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.compute.parallel.layout import Mesh
from hvd_train.compute.parallel.tensor import Cut
from hvd_train.state.packing import from_bytes, from_tensors, to_bytes, to_tensors

_NAME = "part"


class WholeState:
    """Knows which part of each tensor of the whole `model` this rank has.

    `cuts` maps the names of parameters that are cut to their cuts. `ties` maps the names of
    parameters that several stages have to these stages.
    """

    def __init__(
        self, model: nn.Module, cuts: Mapping[str, Cut], ties: Mapping[str, Sequence[int]], mesh: Mesh
    ) -> None:
        self._cuts, self._ties, self._mesh = cuts, ties, mesh
        self._shapes = {name: t.shape for name, t in model.state_dict().items()}
        first = {p: name for name, p in model.named_parameters()}
        self._also = {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)}

    def gather(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole state by name on rank 0, given the `part` of each rank.

        Return an empty state on other ranks. The call is collective. Values are tensors, or dicts
        that hold some.
        """
        if self._mesh.position.data:
            return {}
        tensors = to_tensors(dict(part), _NAME)
        sent = torch.frombuffer(bytearray(to_bytes(tensors)), dtype=torch.uint8)
        received = self._mesh.copy.all_to_all([sent, *[sent[:0]] * (self._mesh.copy.size - 1)])
        if self._mesh.copy.rank:
            return {}
        parts = [from_tensors(from_bytes(content.numpy().tobytes()), _NAME) for content in received]
        names = [name for name in self._shapes if any(name in values for values in parts)]
        return {name: self._joined(name, [values[name] for values in parts if name in values]) for name in names}

    def named(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `gather` returned with all names of parameters: stages know one of several."""
        also = {name: whole[first] for name, first in self._also.items() if first in whole}
        return {name: whole.get(name, also.get(name)) for name in self._shapes if name in whole or name in also}

    def part(self, whole: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Return this rank's part of `whole`, for those of `names` that it has."""
        return {name: self._part(name, whole[name]) for name in names if name in whole}

    def is_counted_here(self, name: str) -> bool:
        """Return True if this rank, of all ranks with equal values, counts parameter `name`."""
        position = self._mesh.position
        is_replica = name not in self._cuts and position.tensor > 0
        return not is_replica and position.stage == self._ties.get(name, [position.stage])[0]

    def check(self, whole: Mapping[str, Tensor]) -> None:
        """Raise RuntimeError if `whole` is of another model."""
        given = {name: t.shape for name, t in whole.items()}
        differing = [n for n in sorted({*given, *self._shapes}) if given.get(n) != self._shapes.get(n)]
        if differing:
            name = differing[0]
            raise RuntimeError(f"'{name}' is {_text(given.get(name))} there and {_text(self._shapes.get(name))} here")

    def _joined(self, name: str, values: list[Any]) -> Any:
        """Join the values of ranks; those of the first stage that has the parameter come first."""
        if isinstance(values[0], dict):
            return {key: self._joined(name, [v[key] for v in values]) for key in values[0]}
        cut = self._cuts.get(name)
        if cut is None or not isinstance(values[0], Tensor) or values[0].dim() != len(self._shapes[name]):
            return values[0]
        return cut.join(values[: self._mesh.layout.tensor])

    def _part(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._part(name, v) for key, v in value.items()}
        cut = self._cuts.get(name)
        if cut is None or not isinstance(value, Tensor) or value.shape != self._shapes[name]:
            return value
        return cut.part(value, self._mesh.position.tensor, self._mesh.layout.tensor)


def _text(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"
