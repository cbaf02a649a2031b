"""Compares what must be equal on all ranks before the first step: devices, samples and their order, and models."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train import model_state, preprocessing
from hvd_train.comm._agree import same
from hvd_train.comm.base import Communicator
from hvd_train.data.base import Dataset, Split
from hvd_train.generators import seed_generators


def alike(comm: Communicator, data: Dataset, model: nn.Module, device: torch.device) -> None:
    """Raise UserError on every rank where devices, data or models differ between ranks; collective.

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


def _of_split(name: str, split: Split) -> dict[str, Any]:
    facts: dict[str, Any] = {f"number of {name} samples": len(split)}
    if len(split):
        facts[f"hash of the {name} labels"] = _hash(split.labels)
        facts[f"numbers of the first, middle and last {name} sample"] = _samples(split)
    return facts


def _samples(split: Split) -> Any:
    """Return figures of a few samples, with the same random augmentation on every rank; None if they differ at each call."""
    indices = torch.tensor([0, len(split) // 2, len(split) - 1])

    def drawn() -> Any:
        seed_generators(0)
        return _figures(split.batch(indices))

    first, second = drawn(), drawn()
    return first if first == second else None


def _figures(batch: Any) -> Any:
    """Return two sums of each floating-point tensor, one of which depends on the order, and a hash of every other tensor."""
    if isinstance(batch, Tensor):
        return _sums(batch) if batch.is_floating_point() or batch.is_complex() else _hash(batch)
    if isinstance(batch, dict):
        return [[str(key), _figures(value)] for key, value in batch.items()]
    return [_figures(value) for value in batch] if isinstance(batch, list | tuple) else str(batch)


def _sums(x: Tensor) -> list[Any]:
    sizes = x.detach().abs().double().flatten().nan_to_num(0.0, 0.0, 0.0)
    places = torch.arange(1, len(sizes) + 1, dtype=torch.float64, device=sizes.device) / max(1, len(sizes))
    return [list(x.shape), float(sizes.sum()), float((sizes * places).sum())]


def _hash(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _described(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    kind = str(x.dtype).removeprefix("torch.")
    return f"{list(x.shape)} {kind}{', trained' if x.requires_grad else ''}"
