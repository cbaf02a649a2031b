"""Merges the states of one metric of torchmetrics over ranks, by the metric's own reductions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvd_train.comm.agree import together
from hvd_train.comm.communicator import Communicator
from hvd_train.data.nesting import map_tensors
from hvd_train.errors import UserError
from hvd_train.state import packing

if TYPE_CHECKING:
    from torchmetrics import Metric

States = dict[str, dict[str, Any]]
"""The states of a metric and of the metrics in it, by the name of the module and of the state."""

_CONTENT = "content"


def gather(content: Any, name: str, comm: Communicator, root: int) -> list[Any]:
    """Return the `content` of all ranks in rank order on `root`, elsewhere an empty list; collective.

    Raise UserError, which names the metric, if a value is of a type that `packing` does not know.
    """
    packed = together(comm, partial(_packed, content, name))
    empty = torch.empty(0, dtype=torch.uint8)
    received = comm.all_to_all([packed if rank == root else empty for rank in range(comm.size)])
    return [_unpacked(part) for part in received] if comm.rank == root else []


def merge_(metric: Metric, of_ranks: Sequence[States], samples: Sequence[int]) -> None:
    """Replace the state of `metric` by that of all `samples`, of which `of_ranks[i]` has `samples[i]`.

    Parts without samples have no influence: their states may lack the shape of the others.
    """
    parts = [(part, number) for part, number in zip(of_ranks, samples, strict=True) if number]
    weights = [number for _, number in parts]
    for path, module in metrics_in(metric):
        for name, reduction in module._reductions.items():
            of_parts = [part[path][name] for part, _ in parts]
            merged = map_tensors(partial(torch.Tensor.to, device=module.device), _merged(of_parts, reduction, weights))
            setattr(module, name, merged)


def states(metric: Metric) -> States:
    """Return the states of a metric and of the metrics in it."""
    return {path: {name: getattr(m, name) for name in m._reductions} for path, m in metrics_in(metric)}


def is_mergeable(metric: Metric) -> bool:
    """Return True if every state has a reduction or is a list.

    torchmetrics stacks the other states of ranks, and some metrics take a stack for a batch or lose
    the scale of ranks with one sample.
    """
    reductions = [
        (module._defaults[name], reduction)
        for _, module in metrics_in(metric)
        for name, reduction in module._reductions.items()
    ]
    return all(reduction is not None or isinstance(default, list) for default, reduction in reductions)


def metrics_in(metric: Metric) -> list[tuple[str, Metric]]:
    """Return the metric and the metrics that it wraps, each with the name of its module."""
    from torchmetrics import Metric as Base

    return [(path, module) for path, module in metric.named_modules() if isinstance(module, Base)]


def _merged(parts: list[Any], reduction: Any, weights: list[int]) -> Any:
    from torchmetrics.utilities.data import dim_zero_cat, dim_zero_mean

    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    if len(parts) == 1:
        return parts[0]
    if reduction is dim_zero_cat:
        return dim_zero_cat(parts)
    stacked = torch.stack(parts)
    if reduction is dim_zero_mean:
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        return torch.tensordot(shares.to(stacked.dtype), stacked, dims=1)
    return reduction(stacked)


def _packed(content: Any, name: str) -> Tensor:
    try:
        packed = packing.to_bytes(packing.to_tensors(content, _CONTENT))
    except TypeError as error:
        raise UserError(f"train.metrics: {name} holds {error}, expected tensors, numbers and texts") from None
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _unpacked(content: Tensor) -> Any:
    return packing.from_tensors(packing.from_bytes(content.numpy().tobytes()), _CONTENT)
