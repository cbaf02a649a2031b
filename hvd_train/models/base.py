"""The contract of a model builder.

A model is a file in `hvd_train/models/zoo` whose `create(spec, **options)` returns a
`torch.nn.Module`. The module maps inputs of shape `(batch, *spec.input_shape)` to outputs of shape
`(batch, spec.outputs)` for classification and regression. For language, it maps int64 tokens
`(batch, length)` to `(batch, length, spec.outputs)`. `create` raises UserError for data that the
model cannot take.

A model other than an `nn.Sequential` can be cut into the stages of a pipeline if it has a method
`pipeline_layers() -> list[Layer]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hvd_train.data.spec import DataSpec


class Layer(NamedTuple):
    """One of the functions that a model's forward pass applies one after another."""

    paths: tuple[str, ...]
    """The paths of the submodules that it uses, as `nn.Module.get_submodule` takes them."""
    run: Callable[[Tensor], Tensor]


__all__ = ["DataSpec", "Layer"]
