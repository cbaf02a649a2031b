"""Pads samples of unequal length or size to the largest of the batch, and stacks them.

Targets that are sequences of integers are padded with -100, which losses ignore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field, Literal, PositiveInt
from hvd_train.data.batch import LABELS
from hvd_train.data.collating import Place, dotted, join_samples
from hvd_train.errors import UserError, nearest

IGNORED = -100
"""The class that losses ignore by default, as torch's do."""


@dataclass(frozen=True)
class _Part:
    """The shapes of the tensors at a place of the samples, and the shape that they are padded to."""

    shapes: list[torch.Size]
    whole: torch.Size
    is_target: bool


@dataclass(frozen=True)
class Pad:
    """Pads and stacks samples. The fields are the options of `create`."""

    label: str | None
    value: float | dict[str, float]
    side: str
    multiple: int | dict[str, int]
    dims: tuple[int, ...]
    mask: str | dict[str, str] | None

    def __call__(self, samples: list[Any]) -> Any:
        parts: dict[str, _Part] = {}

        def join(place: Place, tensors: list[Tensor]) -> Tensor:
            is_target = self._is_target(samples[0], place)
            joined = self._join(place, tensors, is_target)
            parts[dotted(place)] = _Part([t.shape for t in tensors], joined.shape[1:], is_target)
            return joined

        batch = join_samples(samples, join)
        for option, given in (("value", self.value), ("multiple", self.multiple)):
            _check_keys(option, given, parts)
        return batch if self.mask is None else self._with_masks(batch, parts)

    def _join(self, place: Place, tensors: list[Tensor], is_target: bool) -> Tensor:
        first, shape = tensors[0], self._shape(place, tensors)
        if all(t.shape == shape for t in tensors):
            return torch.stack(tensors)
        if any(t.dtype != first.dtype for t in tensors):
            raise ValueError(f"the samples of one batch have values of different types at '{dotted(place)}'")
        joined = torch.full((len(tensors), *shape), self._value(place, first.dtype, is_target), dtype=first.dtype)
        for row, tensor in zip(joined, tensors, strict=True):
            row[self._part(tensor.shape, shape)] = tensor
        return joined

    def _shape(self, place: Place, tensors: list[Tensor]) -> torch.Size:
        """Return the shape that holds all `tensors`, with the dimensions `dims` rounded up."""
        if len({t.dim() for t in tensors}) > 1:
            raise ValueError(f"the samples of one batch differ in their number of dimensions at '{dotted(place)}'")
        sizes = [max(size) for size in zip(*(t.shape for t in tensors), strict=True)]
        multiple = self.multiple.get(dotted(place), 1) if isinstance(self.multiple, dict) else self.multiple
        for dim in self._rounded(len(sizes)):
            sizes[dim] = -(-sizes[dim] // multiple) * multiple
        return torch.Size(sizes)

    def _rounded(self, dims: int) -> list[int]:
        """Return those of `dims` that a tensor with so many dimensions has."""
        return sorted({dim % dims for dim in self.dims if -dims <= dim < dims})

    def _part(self, shape: torch.Size, whole: torch.Size) -> tuple[slice, ...]:
        """Return where a tensor of `shape` is in the padded one of shape `whole`."""
        return tuple(
            slice(size) if self.side == "right" else slice(full - size, full)
            for size, full in zip(shape, whole, strict=True)
        )

    def _value(self, place: Place, dtype: torch.dtype, is_target: bool) -> float:
        """Return the padding at `place`; UserError if `dtype` cannot hold it."""
        name, is_mask = dotted(place), dtype == torch.bool or dotted(place).endswith("mask")
        value = 0.0 if isinstance(self.value, dict) or is_mask else self.value
        if is_target and not is_mask and not dtype.is_floating_point:
            value = IGNORED
        if isinstance(self.value, dict):
            value = self.value.get(name, value)
        if not _holds(dtype, value):
            raise UserError(
                f"data.collate.value: {value:g} is no {str(dtype).removeprefix('torch.')}, the type of '{name}'; "
                f"give a padding that is, as in value: {{'{name}': 0}}"
            )
        return value if dtype.is_floating_point or dtype.is_complex else int(value)

    def _is_target(self, sample: Any, place: Place) -> bool:
        if isinstance(sample, dict):
            key = self.label or next((key for key in LABELS if key in sample), None)
            return place[0] == key
        return isinstance(sample, tuple | list) and len(sample) > 1 and place[0] == str(len(sample) - 1)

    def _with_masks(self, batch: Any, parts: dict[str, _Part]) -> Any:
        """Return `batch` with the masks that `mask` names."""
        sequences = {name: part for name, part in parts.items() if self._rounded(len(part.whole))}
        first = next((name for name, part in sequences.items() if not part.is_target), "")
        names = self.mask if isinstance(self.mask, dict) else {str(self.mask): first}
        for name in names.values():
            if name not in sequences:
                raise UserError(f"data.collate.mask: no sequence '{name}' in the samples{nearest(name, sequences)}")
        masks = {key: self._mask(sequences[name]) for key, name in names.items()}
        if isinstance(batch, dict) and (taken := next((key for key in masks if key in batch), None)):
            raise UserError(f"data.collate.mask: the samples have a value '{taken}' already; give another name")
        if isinstance(batch, dict):
            return {**batch, **masks}
        if not isinstance(batch, tuple | list):
            raise UserError("data.collate.mask: expected samples that are dicts, or tuples of inputs and a target")
        return (*batch[:-1], *masks.values(), batch[-1])

    def _mask(self, part: _Part) -> Tensor:
        """Return a mask of the dimensions `dims`, True where values are those of a sample."""
        dims = self._rounded(len(part.whole))
        mask = torch.zeros(len(part.shapes), *(part.whole[dim] for dim in dims), dtype=torch.bool)
        for row, shape in zip(mask, part.shapes, strict=True):
            filled = self._part(shape, part.whole)
            row[tuple(filled[dim] for dim in dims)] = True
        return mask


def _check_keys(option: str, given: Any, known: dict[str, Any]) -> None:
    for name in given if isinstance(given, dict) else ():
        if name not in known:
            raise UserError(f"data.collate.{option}: no '{name}' in the samples{nearest(name, known)}")


def _holds(dtype: torch.dtype, value: float) -> bool:
    if dtype.is_floating_point or dtype.is_complex:
        return True
    if dtype == torch.bool:
        return value in (0, 1)
    info = torch.iinfo(dtype)
    return value == int(value) and info.min <= value <= info.max


def create(
    label: str | None = None,
    *,
    value: Annotated[
        float | dict[str, float],
        "padding, or one for each key of a dict or position in a tuple, as in {input_ids: 3, labels: -1}; by default 0 for "
        "inputs and masks, and -100 for integer targets",
    ] = 0.0,
    side: Annotated[Literal["right", "left"], "side of a sample that gets the padding"] = "right",
    multiple: Annotated[
        PositiveInt | dict[str, PositiveInt],
        "number of which the padded length is a multiple, or one for each key or position",
    ] = 1,
    dims: Annotated[
        list[int],
        Field(min_length=1),
        "dimensions of a sample that are lengths: 'multiple' rounds them up, and a mask has them; [-1] for (channels, time), "
        "[-2, -1] for images; other dimensions are padded too where samples differ",
    ] = [0],
    mask: Annotated[
        str | dict[str, str] | None,
        "key of a mask of the first input, True for values and False for padding; or several, as in {src_mask: src, tgt_mask: "
        "tgt}; samples that are tuples get masks as inputs after the others",
    ] = None,
) -> Pad:
    return Pad(label, value, side, multiple, tuple(dims), mask)
