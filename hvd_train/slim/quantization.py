"""Quantisation-aware training: layers that compute with the rounding errors of int8.

Jacob et al., arXiv 1712.05877. The parameters stay in floating point. A forward pass rounds them,
and its inputs, to the 255 or 256 values that int8 has, and gradients pass as if it had not
(straight-through estimator). The layers keep their names and their parameters, so that a checkpoint
has the names of the model without quantisation, and two numbers for each layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.compute.loss import wide
from hvd_train.errors import UserError

WEIGHT_LEVELS = 127
"""Weights are multiples of a scale from -127 to 127 times, which onnxruntime and torchao can store."""

INPUT_LEVELS = 255
"""Inputs have so many steps between their smallest and their largest value."""


def weight_scale(weight: Tensor) -> Tensor:
    """Return the scale of each output channel of `weight` (out, ...), in the shape (out, 1, ...)."""
    largest = weight.detach().abs().flatten(1).amax(1) / WEIGHT_LEVELS
    return torch.where(largest > 0, largest, 1.0).view(-1, *[1] * (weight.dim() - 1))


def rounded_weight(weight: Tensor) -> Tensor:
    """Return the symmetric int8 values of `weight` for each output channel, as floats."""
    return _rounded(weight, weight_scale(weight), 0.0, -WEIGHT_LEVELS, WEIGHT_LEVELS)


def rounded_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the affine uint8 values of `x` as floats, for a range from `low` <= 0 to `high` >= 0.

    Zero is one of the values. Values outside of the range become its ends.
    """
    scale = (high - low) / INPUT_LEVELS
    return _rounded(x, scale, torch.round(-low / scale), 0, INPUT_LEVELS)


def _rounded(x: Tensor, scale: Tensor, zero: Tensor | float, least: int, most: int) -> Tensor:
    found: Tensor = _Round.apply(x, scale, zero, least, most)  # type: ignore[no-untyped-call]
    return found


class _Round(torch.autograd.Function):
    """Rounds to multiples of a scale, and passes the gradient of values within the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | float, least: int, most: int) -> Tensor:
        levels = torch.round(x / scale) + zero
        ctx.save_for_backward((levels >= least) & (levels <= most))
        return (levels.clamp(least, most) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None, None, None


class InputRange(nn.Module):
    """Rounds the inputs of a layer to their range, and notes the extremes of training batches.

    `ranges.Ranges` moves the range after steps. Until then inputs pass unchanged.
    """

    low: Tensor
    high: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros((), device=device))
        self.register_buffer("high", torch.zeros((), device=device))
        self.forget()

    def forget(self) -> None:
        """Begin to note extremes."""
        self.seen = torch.full((2,), -torch.inf, device=self.low.device)
        """-minimum and maximum of the inputs since the last `forget`."""

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        if self.training and x.numel():
            extremes = torch.stack([-x.detach().min(), x.detach().max()])
            self.seen = torch.maximum(self.seen.to(extremes), extremes)
        return rounded_input(x, self.low, self.high) if self.high > self.low else x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Keep the range if `state_dict` is of a model without quantisation."""
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class QuantizedLinear(nn.Linear):
    """A linear layer with rounded weights and inputs."""

    inputs: InputRange

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.inputs(x), rounded_weight(self.weight), self.bias)


class QuantizedConv1d(nn.Conv1d):
    """A convolution with rounded weights and inputs."""

    inputs: InputRange

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._conv_forward(self.inputs(x), rounded_weight(self.weight), self.bias)
        return found


class QuantizedConv2d(nn.Conv2d):
    """A convolution with rounded weights and inputs."""

    inputs: InputRange

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._conv_forward(self.inputs(x), rounded_weight(self.weight), self.bias)
        return found


_QUANTIZED: dict[type, type] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
}
_PLAIN = {quantized: plain for plain, quantized in _QUANTIZED.items()}


def plain_type(layer: nn.Module) -> Any:
    """Return the class of torch of which `layer` is, or was before it was quantised."""
    return _PLAIN.get(type(layer), type(layer))


def replace_(model: nn.Module) -> None:
    """Let all linear layers and convolutions of `model` round; UserError if it has none."""
    layers = [m for m in model.modules() if type(m) in _QUANTIZED]
    if not layers:
        raise UserError(
            "compress_model.quantize: the model has no linear layer and no convolution of one or two dimensions"
        )
    for layer in layers:
        round_(layer)


def round_(layer: nn.Module) -> None:
    """Let a linear layer or convolution of torch round its weight and its inputs."""
    layer.inputs = InputRange(next(layer.parameters()).device)
    layer.__class__ = _QUANTIZED[type(layer)]


@torch.no_grad()
def plain_(model: nn.Module) -> None:
    """Let the layers of `model` be torch's own again, with the rounded weights; for exports.

    int8 weights that are made of these ones have the same values, up to the rounding of floats.
    """
    for layer in model.modules():
        if type(layer) in _PLAIN:
            layer.weight.copy_(rounded_weight(layer.weight))  # type: ignore[operator,arg-type]
            del layer.inputs
            layer.__class__ = _PLAIN[type(layer)]
