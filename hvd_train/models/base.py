"""The contract of a model builder.

A model is a file in this package whose `create(spec, **options)` returns a `torch.nn.Module` that maps a
batch of inputs of shape `(batch, *spec.input_shape)` to outputs: `(batch, spec.outputs)` for classification
and regression, `(batch, length, spec.outputs)` for language (inputs are int64 tokens `(batch, length)`). It
raises UserError where the model cannot take such data.

A model that is no `nn.Sequential` can be cut into stages of a pipeline if it has a method `links() -> list[Link]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hvd_train.spec import DataSpec


class Link(NamedTuple):
    """One of the steps that a model's forward pass consists of, each of which takes what the one before returned.

    `paths` are the submodules that it uses, in the words of `nn.Module.get_submodule`.
    """

    paths: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


__all__ = ["DataSpec", "Link"]
