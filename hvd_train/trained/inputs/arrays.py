"""Arrays of the shape of an input, as numbers of nested lists or rows of NumPy and safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field
from torch import Tensor

from hvd_train.data.value_checks import LARGEST, Array
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, numbered
from hvd_train.trained.reading import arrays


class Arrays(Input):
    """Checks the shape and makes float32 tensors.

    `scale` of `data.json` divides integers, which are bytes, as the source of the run did.
    """

    def __init__(self, context: InputContext) -> None:
        self._shape = context.spec.input_shape
        self._name: str = context.facts.get("name") or context.section.options.get("x", "x")
        self._scale: float | None = context.facts.get("scale")

    def encode(self, records: Any, place: Place = numbered) -> Tensor:
        """Return inputs (records, *shape) in float32."""
        x = (
            records
            if isinstance(records, np.ndarray)
            else np.stack([self._array(r, i, place) for i, r in enumerate(records)])
        )
        if x.shape[1:] != self._shape and x[0].size == np.prod(self._shape) and x.ndim < 3:
            x = x.reshape(len(x), *self._shape)
        if x.shape[1:] != self._shape:
            raise UserError(f"{place(0)}: an array of shape {x.shape[1:]}, expected {self._shape} as in training")
        return torch.from_numpy(self._single(x, place))

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield rows of .npy, .npz, .safetensors and IDX files, and of JSON Lines with a list on each line."""
        if keep:
            raise UserError(f"--keep: arrays have no column '{keep[0]}'")
        return arrays.blocks(paths, self._name)

    def form(self) -> Form:
        """Return nested lists of finite numbers."""
        return Form(_nested(self._shape))

    def _array(self, record: Any, number: int, place: Place) -> Array:
        try:
            found = np.asarray(record)
        except ValueError:
            found = np.empty(0, object)
        if found.dtype.kind not in "biuf":
            raise UserError(f"{place(number)}: expected an array of numbers of shape {self._shape}")
        if found.shape != self._shape:
            raise UserError(f"{place(number)}: an array of shape {found.shape}, expected {self._shape} as in training")
        return found

    def _single(self, x: Array, place: Place) -> Array:
        if self._scale is not None and x.dtype.kind in "iu":
            return np.divide(x, self._scale, dtype=np.float32)
        with np.errstate(over="ignore"):
            single = x.astype(np.float32)
        if not np.isfinite(single).all():
            row = int(np.argwhere(~np.isfinite(single))[0][0])
            raise UserError(f"{place(row)}: a number is not finite in float32, expected at most {LARGEST:.3g}")
        return single


def _nested(shape: Sequence[int]) -> Any:
    """Return the type of an array of this shape as nested lists."""
    if not shape:
        return Annotated[float, Field(allow_inf_nan=False)]
    length = Field(min_length=shape[0], max_length=shape[0])
    return Annotated[list[_nested(shape[1:])], length, FailFast()]  # type: ignore[misc]


def create(context: InputContext) -> Arrays:
    return Arrays(context)
