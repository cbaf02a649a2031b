"""A weight of torchao that embeddings and convolutions take too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchao.quantization import Int8Tensor, PerRow
from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

from hvd_train.slim.quantization import weight_scale


class Int8Weight(Int8Tensor):  # type: ignore[misc]
    """Int8 values and a float32 scale for each output channel, or for each row of an embedding.

    `F.linear` is torchao's. An embedding looks up int8 rows and converts only these. One tensor may
    be both, as the token embedding that is the output layer of a transformer too.
    """


def quantized(weight: Tensor, *, dynamic: bool) -> Int8Weight:
    """Return `weight` (out, ...) with the scale max |w| / 127 of each of its `out` channels.

    The scale is that of quantisation-aware training, so its weights lose nothing.
    If `dynamic`, `F.linear` rounds each row of its input to int8, with a scale of its own.
    """
    activations = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if dynamic else None
    rows = weight.detach().flatten(1)
    made = Int8Tensor.from_hp(rows, PerRow(), scale=weight_scale(rows), act_quant_kwargs=activations)
    column = (-1, *[1] * (weight.dim() - 1))
    return Int8Weight(
        made.qdata.view(weight.shape),
        made.scale.view(column),
        [1, *weight.shape[1:]],
        weight.dtype,
        zero_point=made.zero_point.view(column),
        act_quant_kwargs=activations,
    )


def _embedding(function: Callable[..., Tensor], types: Any, arguments: Any, options: Any) -> Tensor:
    indices, table = arguments[:2]
    return F.embedding(indices, table.qdata).to(table.dtype) * F.embedding(indices, table.scale)


def _convolution(function: Callable[..., Tensor], types: Any, arguments: Any, options: Any) -> Tensor:
    x, weight, *rest = arguments
    return function(x, weight.qdata.to(weight.dtype) * weight.scale, *rest, **options)


Int8Weight.implements_torch_function(F.embedding)(_embedding)
for _function in (F.conv1d, F.conv2d, F.conv3d):
    Int8Weight.implements_torch_function(_function)(_convolution)
