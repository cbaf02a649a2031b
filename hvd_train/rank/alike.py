"""Checks that devices, samples with their order, and models are equal on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.agree import same
from hvd_train.comm.communicator import Communicator
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset, Split
from hvd_train.data.samples import StreamSplit, first_batch
from hvd_train.state import model_state
from hvd_train.state.digest import digest
from hvd_train.state.generators import seed_generators

DIGITS = 16
"""Hexadecimal digits of a digest that are compared and shown."""


def check_alike(comm: Communicator, data: Dataset, model: nn.Module, device: torch.device) -> None:
    """Raise UserError on every rank if devices, data or models differ between ranks; collective.

    Leaves the global generators in another state: seed them afterwards.
    """
    if comm.size == 1:
        return
    same(comm, "train.device", {"device": device.type}, "name one that all hosts have, such as train.device=cpu")
    same(
        comm,
        "data",
        {**_of_split("training", data.train), **_of_split("held-out", data.test), **preprocessing.document(data)},
        "every rank must read the same samples in the same order: look for files that differ between hosts, for a split or a "
        "shuffle without a fixed seed, and for the order of a set",
    )
    same(
        comm,
        "model",
        {name: _described(t) for name, t in [*model_state.tensors(model), *model_state.others(model).items()]},
        "every rank must build the same model: look for code that asks for the rank or the host, and for versions that differ",
    )


def _of_split(name: str, split: Any) -> dict[str, Any]:
    if isinstance(split, StreamSplit):
        return {f"numbers of the first {name} sample": _drawn(lambda: first_batch(split))}
    facts: dict[str, Any] = {f"number of {name} samples": len(split)}
    if len(split):
        facts[f"hash of the {name} labels"] = digest(split.labels)[:DIGITS]
        facts[f"numbers of the first, middle and last {name} sample"] = _samples(split)
    return facts


def _samples(split: Split) -> Any:
    """Return figures of a few samples, with the same random augmentation on every rank.

    Return None if they differ at each call.
    """
    return _drawn(lambda: split.batch(torch.tensor([0, len(split) // 2, len(split) - 1])))


def _drawn(batch: Callable[[], Any]) -> Any:
    """Return the figures of `batch()`; None if they differ at each call."""

    def drawn() -> Any:
        seed_generators(0)
        return _figures(batch())

    first, second = drawn(), drawn()
    return first if first == second else None


def _figures(batch: Any) -> Any:
    """Return two sums of each floating-point tensor, and a digest of every other tensor.

    One of the sums depends on the order of elements.
    """
    if isinstance(batch, Tensor):
        return _sums(batch) if batch.is_floating_point() or batch.is_complex() else digest(batch)[:DIGITS]
    if isinstance(batch, dict):
        return [[str(key), _figures(value)] for key, value in batch.items()]
    return [_figures(value) for value in batch] if isinstance(batch, list | tuple) else str(batch)


def _sums(x: Tensor) -> list[Any]:
    sizes = x.detach().abs().double().flatten().nan_to_num(0.0, 0.0, 0.0)
    weights = torch.arange(1, len(sizes) + 1, dtype=torch.float64, device=sizes.device) / max(1, len(sizes))
    return [list(x.shape), float(sizes.sum()), float((sizes * weights).sum())]


def _described(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    kind = str(x.dtype).removeprefix("torch.")
    return f"{list(x.shape)} {kind}{', trained' if x.requires_grad else ''}"
