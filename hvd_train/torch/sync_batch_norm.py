"""Batch normalization over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hvd_train.torch.mpi_ops import Sum, allgather, allreduce, size


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm*` over the concatenated inputs of all ranks, on any device.

    Batches may differ in size. The input is (N, C, ...), and the output has its dtype. Evaluation
    mode and a world of one rank use torch's own implementation. Gradients of weight and bias are
    this rank's part; their sum over ranks is the gradient of the whole batch. Raise ValueError on
    every rank if all ranks together have a single value per channel.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output: Tensor
        output, mean, var, count = _Normalize.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if count > 0:
            self._track(mean, var, int(count))
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm: expected (N, C, ...), at least two dimensions, got {input.dim()}")
        if input.shape[1] != self.num_features:
            raise ValueError(f"SyncBatchNorm: expected {self.num_features} channels, got {input.shape[1]}")

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), share)


class _Normalize(torch.autograd.Function):
    """Computes (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over all ranks.

    The output has the dtype of x; float16 and bfloat16 are computed in float32. Mean, variance and
    count are further outputs. Gradients of weight and bias are this rank's part.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _moments(x)
        if count == 1:
            raise ValueError(
                f"SyncBatchNorm: expected more than 1 value per channel over all ranks, got input of {x.shape}"
            )
        scale = torch.rsqrt(var + eps)
        output = _normalized(x, mean, scale)
        if weight is not None:
            output = output * _along(weight, x)
        if bias is not None:
            output = output + _along(bias, x)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.count, ctx.bias_dtype = count, None if bias is None else bias.dtype
        number = torch.tensor(count)
        ctx.mark_non_differentiable(mean, var, number)
        return output.to(x.dtype), mean, var, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:  # type: ignore[override]
        x, weight, mean, scale = ctx.saved_tensors
        wide, normalized = gradient.to(scale.dtype), _normalized(x, mean, scale)
        dims = [d for d in range(x.dim()) if d != 1]
        of_bias, of_weight = wide.sum(dims), (wide * normalized).sum(dims)
        shift, slope = allreduce(torch.stack([of_bias, of_weight]), op=Sum) / max(ctx.count, 1)
        factor = scale if weight is None else scale * weight
        of_x = (wide - _along(shift, x) - normalized * _along(slope, x)) * _along(factor, x)
        return (
            of_x.to(x.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            None if ctx.bias_dtype is None else of_bias.to(ctx.bias_dtype),
            None,
        )


def _normalized(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - _along(mean, x)) * _along(scale, x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the mean and biased variance of each channel over all ranks, and the number of values."""
    wide = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.dim()) if d != 1]
    n = x.numel() // x.shape[1]
    var, mean = torch.var_mean(wide, dims, correction=0) if n else (wide.sum(dims), wide.sum(dims))
    own = torch.stack([torch.full_like(mean, n), mean, var]).double()
    # Each rank uses deviations from its own mean, which avoids cancellation (Chan et al. 1979).
    counts, means, variances = allgather(own[None]).unbind(1)
    total = counts.sum(0)
    some = total.clamp_min(1)
    center = (counts * means).sum(0) / some
    spread = (counts * (variances + (means - center).square())).sum(0) / some
    return center.to(wide.dtype), spread.to(wide.dtype), round(float(total[0]))


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """Return one value per channel, in a shape that broadcasts to `x`."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))
