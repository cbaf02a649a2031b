"""From what each rank of a copy has of a model to the whole of it, and back: checkpoints know nothing of either cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.packing import from_bytes, from_tensors, to_bytes, to_tensors
from hvd_train.parallel.layout import Mesh
from hvd_train.parallel.tensor import Cut

_MINE = "mine"


class Pieces:
    """Which part of each tensor of the whole `model` this rank has.

    By name of its parameters, `cuts` are those of which it has a share, and `ties` the stages of those that several have.
    """

    def __init__(
        self, model: nn.Module, cuts: Mapping[str, Cut], ties: Mapping[str, Sequence[int]], mesh: Mesh
    ) -> None:
        self._cuts, self._ties, self._mesh = cuts, ties, mesh
        self._shapes = {name: t.shape for name, t in model.state_dict().items()}

    def gather(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """By name, the whole of what ranks have, on rank 0; of tensors, or of dicts that hold some. Collective."""
        if self._mesh.place.data:
            return {}
        tensors = to_tensors(dict(mine), _MINE)
        sent = torch.frombuffer(bytearray(to_bytes(tensors)), dtype=torch.uint8)
        received = self._mesh.copy.all_to_all([sent, *[sent[:0]] * (self._mesh.copy.size - 1)])
        if self._mesh.copy.rank:
            return {}
        of_ranks = [from_tensors(from_bytes(part.numpy().tobytes()), _MINE) for part in received]
        names = [name for name in self._shapes if any(name in of for of in of_ranks)]
        return {name: self._joined(name, [of[name] for of in of_ranks if name in of]) for name in names}

    def mine(self, whole: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """What of `whole` this rank has, for those of `names` that are in there."""
        return {name: self._part(name, whole[name]) for name in names if name in whole}

    def counts(self, name: str) -> bool:
        """Whether this rank is the one that counts what it has of parameter `name`, which others may have too."""
        place = self._mesh.place
        whole_elsewhere = name not in self._cuts and place.tensor > 0
        return not whole_elsewhere and place.stage == self._ties.get(name, [place.stage])[0]

    def check(self, whole: Mapping[str, Tensor]) -> None:
        """RuntimeError where `whole` is of another model."""
        found = {name: t.shape for name, t in whole.items()}
        differing = [n for n in sorted({*found, *self._shapes}) if found.get(n) != self._shapes.get(n)]
        if differing:
            name = differing[0]
            raise RuntimeError(f"'{name}' is {_text(found.get(name))} there and {_text(self._shapes.get(name))} here")

    def _joined(self, name: str, values: list[Any]) -> Any:
        """The whole from what ranks have, of which those of the first stage that has it come first."""
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
        return cut.part(value, self._mesh.place.tensor, self._mesh.layout.tensor)


def _text(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"
