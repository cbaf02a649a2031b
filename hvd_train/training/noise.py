"""The gradient noise scale: the batch size at which noise and signal of the gradient are equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.config.schema import Config
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import squared_norm
from hvd_train.sync.base import SyncStrategy
from hvd_train.training.progress import Progress

SMOOTHING = 0.99
"""The weight of earlier steps in the moving averages of both estimates."""


def estimates(weighted: float, square: float, groups: int, units: float) -> tuple[float, float]:
    """Return unbiased estimates of tr(S) and |G|^2 from one step.

    G is the true gradient, and S the covariance of the gradient of one sample. The step has `units`
    samples in `groups` micro-batches k of b_k samples with mean gradients G_k. `weighted` is
    sum_k b_k |G_k|^2 / units, and `square` is the squared norm of the gradient of the step. Since
    E|G_k|^2 = |G|^2 + tr(S) / b_k, the micro-batches may differ in size.

    McCandlish et al., arXiv 1812.06162, appendix A.1, has the case of two sizes.
    """
    trace = units * (weighted - square) / (groups - 1)
    return trace, square - trace / units


class NoiseScale:
    """Measures tr(S) / |G|^2 from the gradients of the micro-batches of all ranks.

    Hooks read the gradient of each micro-batch before it is added to those of the others, so
    reductions still overlap with the backward pass. The unit is the one of the loss: samples or
    tokens. `progress` holds the averages of both estimates.
    """

    def __init__(
        self, model: nn.Module, comm: Communicator, units: Callable[[Batch], float], progress: Progress
    ) -> None:
        self._comm, self._units, self._progress = comm, units, progress
        self._frozen = list(model.parameters())
        self._sizes: list[float] = []
        self._squares: list[Tensor] = []

    @property
    def value(self) -> float | None:
        """The noise scale; None as long as the estimate of |G|^2 is not positive."""
        trace, square = self._progress.noise_trace, self._progress.noise_square
        return trace / square if square > 0 else None

    def watch(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the micro-batches of a step, each of which is measured once it is read."""
        self._sizes, self._squares = [], []
        self._adopt()
        return _Watched(batches, self._enter)

    def end(self, square: float, units: float, loss_scale: float) -> None:
        """Add a step with `units` on all ranks, whose gradient has the squared norm `square`; collective.

        All gradients are multiplied by `loss_scale`. A step in which one overflows does not count.
        """
        measured = [(size, float(own)) for size, own in zip(self._sizes, self._squares, strict=True) if size]
        values = torch.tensor(
            [math.fsum(units / size * own for size, own in measured), len(measured)], dtype=torch.float64
        )
        with self._comm.aside():
            self._comm.all_reduce_(values, "sum")
        weighted, groups = float(values[0]) / loss_scale**2, int(values[1])
        square /= loss_scale**2
        if groups > 1 and math.isfinite(weighted + square):
            self._add(*estimates(weighted, square, groups, units))

    def _add(self, trace: float, square: float) -> None:
        progress = self._progress
        progress.noise_trace = SMOOTHING * progress.noise_trace + (1 - SMOOTHING) * trace
        progress.noise_square = SMOOTHING * progress.noise_square + (1 - SMOOTHING) * square

    def _enter(self, batch: Batch) -> None:
        self._sizes.append(self._units(batch))
        self._squares.append(torch.zeros((), dtype=torch.float64))

    def _adopt(self) -> None:
        """Watch the parameters that have been unfrozen since the last step."""
        for p in self._frozen:
            if p.requires_grad:
                p.register_hook(self._measure)
        self._frozen = [p for p in self._frozen if not p.requires_grad]

    @torch.no_grad()
    def _measure(self, gradient: Tensor) -> None:
        if self._squares:
            self._squares[-1] = self._squares[-1].to(gradient.device) + squared_norm(gradient)


class _Watched(Sequence[Batch]):
    def __init__(self, batches: Sequence[Batch], enter: Callable[[Batch], None]) -> None:
        self._batches, self._enter = batches, enter

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        batch = self._batches[number]
        self._enter(batch)
        return batch


def check(config: Config, strategy: SyncStrategy) -> None:
    """Raise UserError if the noise scale is not defined in this run."""
    option = "train.noise_scale"
    if config.parallel.pipeline * config.parallel.tensor > 1:
        raise UserError(
            f"{option}: parallel divides the gradient among ranks; leave {option} out, or set parallel.pipeline and "
            "parallel.tensor to 1"
        )
    if not strategy.gradient_scale.sums or config.sync.compression.member != "none":
        raise UserError(
            f"{option}: it needs the exact mean gradient of all samples in every step; take sync.strategy: allreduce "
            f"(op: mean, weights: samples) without sync.compression, or leave {option} out"
        )
    if strategy.members.workers * config.train.accumulate < 2:
        raise UserError(
            f"{option}: it compares the gradients of micro-batches, and a step has only one; start more ranks (--np), set "
            f"train.accumulate to 2 or more, or leave {option} out"
        )
