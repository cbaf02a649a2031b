"""How well probabilities agree with frequencies: the reliability diagram and its errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.trained.evaluating.report import summed

BINS = 15
"""Bins of equal width over the probabilities from 0 to 1, as Guo et al., arXiv 1706.04599."""


class Calibration:
    """Sums probabilities and outcomes in bins, (lowest, highest], so that the result is exact."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)

    def update(self, probabilities: Tensor, outcomes: Tensor) -> None:
        """Add probabilities (m,) of events, and whether each event came true, bool (m,)."""
        wide = probabilities.double()
        bins = ((wide * BINS).ceil() - 1).nan_to_num().clamp(0, BINS - 1).long()
        values = torch.stack([torch.ones_like(wide), wide, outcomes.double()])
        self._sums.index_add_(1, bins.cpu(), values.cpu())

    def compute(self, comm: Communicator) -> dict[str, Any]:
        """Return the bins and the errors over the samples of all ranks; collective.

        `error` is the expected calibration error, the mean of |confidence - accuracy| over the
        samples, and `largest_error` the largest one of a bin.
        """
        return summary(summed(comm, self._sums))


def summary(sums: Tensor) -> dict[str, Any]:
    """Return bins and errors from the number, the sum of probabilities and of outcomes of each bin."""
    number, confidence, outcomes = sums
    gaps = (confidence - outcomes).abs()
    filled = number > 0
    bins = [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "samples": int(number[i]),
            "confidence": float(confidence[i] / number[i]) if filled[i] else None,
            "accuracy": float(outcomes[i] / number[i]) if filled[i] else None,
        }
        for i in range(BINS)
    ]
    total = float(number.sum())
    return {
        "bins": bins,
        "error": float(gaps.sum()) / total if total else None,
        "largest_error": float((gaps / number)[filled].max()) if total else None,
    }
