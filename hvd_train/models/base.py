"""The contract of a model builder.

A model is a file in `hvd_train/models/zoo` whose `create(spec, **options)` returns a
`torch.nn.Module`. The module maps inputs of shape `(batch, *spec.input_shape)` to outputs of shape
`(batch, spec.outputs)` for classification and regression. For language, it maps int64 tokens
`(batch, length)` to `(batch, length, spec.outputs)`. `create` raises UserError for data that the
model cannot take.

A model other than an `nn.Sequential` can be cut into the stages of a pipeline if it has a method
`pipeline_layers() -> list[Layer]`. Ranks of a stage share the linear layers of each `nn.Sequential`
and, if the model has a method `tensor_pairs() -> Iterable[Pair]`, those that it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hvd_train.data.spec import DataSpec


class Layer(NamedTuple):
    """One of the functions that a model's forward pass applies one after another."""

    paths: tuple[str, ...]
    """The paths of the submodules that it uses, as `nn.Module.get_submodule` takes them."""
    run: Callable[..., Any]
    """Takes what the layer before it returns, any nesting of tensors; the first one the inputs of a batch."""


class Pair(NamedTuple):
    """Linear layers that ranks can share: only `last` depends on the outputs of `first`.

    The functions between them work on each of `units` equal parts of the outputs by itself, such as
    heads of attention.
    """

    first: tuple[str, ...]
    """The paths of layers that are split by their outputs."""
    last: str
    """The path of the layer that is split by its inputs."""
    units: int
    groups: int = 1
    """Blocks of outputs of each of `first`, such as queries, keys and values. Each block has `units` parts."""
    transposed: bool = False
    """True if weights are (inputs, outputs)."""
    counts: tuple[tuple[str, str], ...] = ()
    """Modules and their attributes that count what a rank has a part of."""
    noisy: str | None = None
    """The module between the layers that drops outputs out."""
    refused: str | None = None
    """What the user must change so that ranks can share the layers; None if they can."""


__all__ = ["DataSpec", "Layer", "Pair"]
