"""Sequences of any length, as nested lists of numbers or arrays of .npz and safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field
from torch import Tensor

from hvd_train.data.memory.rows import MappedRows
from hvd_train.data.memory.sequences import Scale, padded, starts_of
from hvd_train.data.sources.sequences import stored
from hvd_train.data.tables.endings import LINES, suffix
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, numbered
from hvd_train.trained.reading import lines


class Sequences(Input):
    """Checks the features and pads sequences to a batch {x, mask}, scaled as in training."""

    def __init__(self, context: InputContext) -> None:
        self._features = context.spec.input_shape[1]
        self._names = context.facts["x"], context.facts["lengths"]
        self._scale = Scale.of(context.document)

    def encode(self, records: Sequence[Any], place: Place = numbered) -> dict[str, Tensor]:
        """Return float32 `x` (records, longest, features), and `mask` (records, longest)."""
        arrays = [self._array(record, place(i)) for i, record in enumerate(records)]
        lengths = torch.tensor([len(array) for array in arrays])
        steps = torch.from_numpy(np.concatenate(arrays))
        scaled = steps if self._scale is None else self._scale(steps)
        x, mask = padded(scaled.__getitem__, lengths.cumsum(0) - lengths, lengths)
        return {"x": x, "mask": mask}

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield the sequences of .npz and .safetensors files, and of JSON Lines with a list of steps on each line."""
        if keep:
            raise UserError(f"--keep: sequences have no column '{keep[0]}'")
        for path in paths:
            if path == lines.STDIN or suffix(path) in LINES:
                yield from lines.json_blocks([path])
            else:
                yield from self._of_file(lines.find(path))

    def form(self) -> Form:
        """Return lists of steps, which are lists of finite numbers."""
        number = Annotated[float, Field(allow_inf_nan=False)]
        step = Annotated[list[number], Field(min_length=self._features, max_length=self._features), FailFast()]
        return Form(Annotated[list[step], Field(min_length=1), FailFast()])

    def _of_file(self, path: Path) -> Iterator[Block]:
        x, lengths = (stored(path, name) for name in self._names)
        values = x.array.values
        starts, found = starts_of(lengths.array.values, lengths.name, len(values))
        steps = MappedRows(x.array, x.convert, values.shape[1:] or (1,))
        for rows in torch.arange(len(found)).split(lines.ROWS):
            begin, of = int(starts[rows[0]]), found[rows]
            records = steps.take(torch.arange(begin, begin + int(of.sum()))).split(of.tolist())
            yield Block([record.numpy() for record in records], _place(x.name, int(rows[0])))

    def _array(self, record: Any, where: str) -> Array:
        try:
            array = np.asarray(record)
        except ValueError:
            array = np.empty(0, object)
        if array.dtype.kind not in "biuf" or array.ndim not in {1, 2}:
            raise UserError(f"{where}: expected a list of steps, each a list of {self._features} numbers")
        array = array.reshape(len(array), -1) if array.size else array.reshape(0, self._features)
        if not len(array):
            raise UserError(f"{where}: a sequence of 0 steps, expected at least one")
        if array.shape[1] != self._features:
            raise UserError(f"{where}: steps of {array.shape[1]} numbers, expected {self._features} as in training")
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        if not np.isfinite(single).all():
            raise UserError(f"{where}: a number is not finite in float32")
        return single


def _place(name: str, start: int) -> Place:
    return lambda row: f"{name}, sequence {start + row} (from 0)"


def create(context: InputContext) -> Sequences:
    return Sequences(context)
