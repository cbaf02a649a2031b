"""Values of records, such as numbers and lists of JSON, as parts of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.value_checks import LARGEST, Array
from hvd_train.errors import UserError

Place = Callable[[], str]
"""Returns the place of a value for messages, such as `a.jsonl: line 3: 'x'`."""
Encode = Callable[[str], Any]
"""Makes a part of a sample of a text."""


def within(place: Place, key: str) -> Place:
    """Return the place of the value at `key` of the record at `place`."""
    return lambda: f"{place()}: '{key}'"


def as_array(value: Any, place: Place) -> Array | None:
    """Return a number or a list of numbers as an array; None for texts, objects and uneven lists.

    Raise UserError for a missing value and for an integer beyond 64 bits.
    """
    if isinstance(value, str | dict | bytes):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    if array.dtype.kind in "Ou":
        _check_numbers(value, place)
    return array if array.dtype.kind in "biuf" else None


def _check_numbers(value: Any, place: Place) -> None:
    """Raise UserError for null and for an integer beyond 64 bits in nested lists."""
    if isinstance(value, list | tuple):
        for inner in value:
            _check_numbers(inner, place)
    elif value is None:
        raise UserError(f"{place()}: found null, expected a value")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{place()}: found {value}, expected an integer of at most 64 bits")


def as_part(value: Any, place: Place, encode: Encode, *, floats: bool = False) -> Any:
    """Return `value` as a part of a sample.

    Numbers and lists of numbers become tensors, int64 if all of them are integers and not `floats`,
    else float32. Tensors stay as they are. Texts become what `encode` returns. Other lists and objects keep their nesting.
    Raise UserError for missing values and for numbers that are not finite in float32.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str):
        return encode(value)
    if isinstance(value, dict):
        return {key: as_part(inner, within(place, key), encode, floats=floats) for key, inner in value.items()}
    array = as_array(value, place)
    if array is not None:
        return torch.from_numpy(_narrowed(array, place, floats=floats))
    if isinstance(value, list | tuple):
        return [as_part(inner, place, encode, floats=floats) for inner in value]
    raise UserError(f"{place()}: found {'null' if value is None else type(value).__name__}, expected a value")


def _narrowed(array: Array, place: Place, *, floats: bool) -> Array:
    if array.dtype.kind in "biu" and not floats:
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    finite = np.isfinite(single)
    if not finite.all():
        value = array[~finite].flat[0]
        expected = f"at most {LARGEST:.3g}" if np.isfinite(value) else "a finite number"
        raise UserError(f"{place()}: found {value}, expected {expected}")
    return single
