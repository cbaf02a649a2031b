"""The contract of a model builder.

A model is a file in this package whose `create(spec, **options)` returns a `torch.nn.Module` that maps a
batch of inputs of shape `(batch, *spec.input_shape)` to outputs: `(batch, spec.outputs)` for classification
and regression, `(batch, length, spec.outputs)` for language (inputs are int64 tokens `(batch, length)`). It
raises UserError where the model cannot take such data.
"""

from __future__ import annotations

from hvd_train.spec import DataSpec

__all__ = ["DataSpec"]
