"""Parts of a sample that methods remove together: columns, tokens, and squares of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.trained.explaining.method import Features, Question

SIDE = 8
"""Parts of a picture along its longer side."""


def numbered(parts: Sequence[Tensor]) -> Features:
    """Return the numbers of parts of several features, so that no number is in two of them."""
    found, first = [], 0
    for part in parts:
        found.append(part + first)
        first += int(part.max()) + 1
    return tuple(found)


def columns(widths: Sequence[int]) -> Tensor:
    """Return the number of the column of each input of a table, (1, inputs)."""
    return torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))[None]


def positions(shape: Sequence[int]) -> Tensor:
    """Return (1, length, ...), in which all values of one position have its number."""
    numbers = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return numbers.expand(*shape)[None].clone()


def tiles(shape: Sequence[int]) -> Tensor:
    """Return (1, ..., rows, columns), cut into squares, at most `SIDE` along the longer side.

    All channels of a square have its number.
    """
    rows, width = shape[-2:]
    edge = -(-max(rows, width) // SIDE)
    across = -(-width // edge)
    grid = torch.arange(rows)[:, None] // edge * across + torch.arange(width) // edge
    return grid.expand(*shape)[None].clone()


def stretches(shape: Sequence[int]) -> Tensor:
    """Return (1, ..., time), cut into at most `SIDE` squared parts of equal duration."""
    return (torch.arange(shape[-1]) // -(-shape[-1] // SIDE**2)).expand(*shape)[None].clone()


def by_parts(kind: str, question: Question, **options: Any) -> Features:
    """Return what the class `kind` of captum, which replaces whole parts, attributes to each value.

    The attribution of a part is divided equally among its values.
    """
    method = getattr(import_extra("captum.attr", "explain"), kind)(question.score)
    found = method.attribute(
        question.features,
        question.baselines,
        feature_mask=question.groups,
        perturbations_per_eval=question.rows,
        **options,
    )
    return divided(found, question.groups)


def divided(values: Features, groups: Features) -> Features:
    """Divide the value of each part, which all its members have, equally among them."""
    sizes = torch.cat([group.flatten() for group in groups]).bincount()
    return tuple(value / sizes[group] for value, group in zip(values, groups, strict=True))
