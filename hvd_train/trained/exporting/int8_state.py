"""Int8 weights in a flat file of tensors.

The int8 values have the name of the weight, and a tensor NAME.scale the float32 scale of each
output channel, in a shape that broadcasts: weight = int8 * scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a model as plain tensors; each int8 weight becomes its values and scales."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if hasattr(value, "qdata") and hasattr(value, "scale"):
            plain[name], plain[name + SCALE] = value.qdata, value.scale
        else:
            plain[name] = value
    return plain


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a model with the float32 weights for what `stored` returned."""
    scales = {name: tensors[name + SCALE] for name, value in tensors.items() if _is_quantized(name, value, tensors)}
    rest = {name: value for name, value in tensors.items() if name.removesuffix(SCALE) not in scales}
    return {**rest, **{name: tensors[name].float() * scale for name, scale in scales.items()}}


def _is_quantized(name: str, value: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    return value.dtype == torch.int8 and name + SCALE in tensors
