"""Nested samples and batches: dicts, tuples and lists of tensors, numbers and strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return the nesting `value` with `function` applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return like(value, [map_tensors(function, inner) for inner in value])
    return value


def like(whole: tuple[Any, ...] | list[Any], values: list[Any]) -> Any:
    """Return `values` as a list, a tuple or a named tuple, as `whole` is."""
    if isinstance(whole, list):
        return values
    return type(whole)(*values) if hasattr(whole, "_fields") else tuple(values)


def first_sample(batch: Any) -> Any:
    """Return the first sample of a batch of tensors."""
    return map_tensors(lambda x: x[0], batch)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in the nesting `value`, in the order of `map_tensors`."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | tuple | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def count(batch: Any) -> int:
    """Return the number of samples in `batch`: the length of its first tensor with a dimension.

    Without one, the batch is a list of samples.
    """
    if batch is None:
        return 0
    first = next((x for x in tensors(batch) if x.dim()), None)
    return len(first if first is not None else batch)


def shown(value: Any) -> str:
    """Return types and shapes of a sample or a batch as a short text for messages."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | str) else type(value).__name__
