"""Warnings about targets that can be meant otherwise, or that leave nothing to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 5
"""Names that a message lists."""


def target_warnings(train: Tensor, test: Tensor, outputs: int, name: str, classes: Sequence[Any] = ()) -> list[str]:
    """Return warnings about the targets, which messages call `name`.

    `train` and `test` are int64 classes `(n,)` below `outputs`, or floats `(n, k)`. `classes` are
    the names of the classes; by default their numbers.
    """
    if len(train) < 2:
        return []
    if train.dtype != torch.int64:
        return number_warnings(lambda: iter([train]), name)
    return _of_classes(train, test, classes or range(outputs), name)


def shortened(names: Sequence[Any]) -> str:
    """Return the first `SHOWN` names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def _of_classes(train: Tensor, test: Tensor, classes: Sequence[Any], name: str) -> list[str]:
    counts = torch.bincount(train, minlength=len(classes)).tolist()
    if sum(map(bool, counts)) == 1:
        return [f"{name}: all {len(train)} training targets are {classes[int(train[0])]}, so there is nothing to learn"]
    absent = [c for c, count in enumerate(counts) if not count]
    if not absent:
        return []
    held_out = int(torch.isin(test, torch.tensor(absent)).sum())
    also = f", though {held_out} held-out samples are of them" if held_out else ""
    return [f"{name}: no training sample of {_listed([classes[c] for c in absent], 'class', 'classes')}{also}"]


def number_warnings(parts: Callable[[], Iterator[Tensor]], name: str) -> list[str]:
    """Return warnings about the numbers `(n, k)` whose rows come in `parts`; n is at least 2."""
    first = next(parts())[0]
    constant = torch.ones(len(first), dtype=torch.bool)
    for y in parts():
        constant &= (y == first).all(0)
        if not constant.any():
            break
    if constant.any():
        columns = constant.nonzero().flatten().tolist()
        which = f" in {_listed(columns, 'column', 'columns')}" if len(first) > 1 else ""
        samples = sum(map(len, parts()))
        return [
            f"{name}: all {samples} training targets are {first[columns[0]]:g}{which}, so there is nothing to learn"
        ]
    if len(first) > 1:
        one_hot = all(bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()) for y in parts())
        return [f"{name}: one-hot rows make a regression here; numbers of classes make a classification"] * one_hot
    values = _few_whole_numbers(parts)
    if values:
        return [
            f"{name}: floats make a regression, though all of them are whole numbers ({shortened(values)}); "
            "integers make classes"
        ]
    return []


def _few_whole_numbers(parts: Callable[[], Iterator[Tensor]]) -> list[int]:
    """Return the different values in order; empty if some is no whole number, or there are many."""
    values, samples = torch.empty(0), 0
    for y in parts():
        values, samples = torch.cat([values, y.flatten()]).unique(), samples + len(y)
        if len(values) > SHOWN * 4 or not torch.equal(values, values.round()):
            return []
    return values.long().tolist() if len(values) <= samples // 2 else []


def _listed(names: Sequence[Any], one: str, many: str) -> str:
    return f"{one if len(names) == 1 else many} {shortened(names)}"
