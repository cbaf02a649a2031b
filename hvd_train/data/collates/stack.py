"""Stacks samples of one shape along a new first dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvd_train.data.collating import Place, join_samples


def create(label: str | None = None) -> Callable[[list[Any]], Any]:
    return partial(join_samples, join=_stack)


def _stack(place: Place, tensors: list[Tensor]) -> Tensor:
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError("for samples of unequal length set data.collate: pad")
    return torch.stack(tensors)
