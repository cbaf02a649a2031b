"""What a perturbation may change in the inputs of a data set, and the unit of its size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hvd_train.compute.attacking import Domain
from hvd_train.data.base import Dataset
from hvd_train.data.batch import divide
from hvd_train.data.nesting import shown
from hvd_train.data.samples import StreamSplit, equally_spaced, first_batch
from hvd_train.errors import UserError

PIXELS = "pixel values of 0 to 1"
DEVIATIONS = "standard deviations of each column"
VALUES = "units of the inputs"

PROBED = 64
"""Training images that are searched for values outside of 0 to 1."""
MEASURED = 10_000
"""Training rows, at equal distances, whose standard deviations are measured."""


def domain(data: Dataset, label: str | None = None) -> Domain:
    """Return the domain of the inputs of `data`.

    - Images: pixels of 0 to 1, before they are standardised. Arrays of three dimensions are images if
      their values are in 0 to 1.
    - Rows of a table: standard deviations of each column over the training rows. Texts, which are
      one-hot or codes, do not change.
    - Other numbers: their own units, without bounds.

    Raise UserError if the inputs are not one tensor of floating-point numbers.
    """
    inputs = _inputs(first_batch(data.train), label)
    columns, files = data.preprocessing.get("columns"), data.preprocessing.get("files", {})
    if columns is not None:
        return Domain(DEVIATIONS, _deviations(probe(data.train, label, MEASURED), columns), torch.zeros(()))
    if "mean" in files:
        mean, std = (torch.tensor(files[key])[:, None, None] for key in ("mean", "std"))
        return Domain(PIXELS, 1 / std, mean, (0.0, 1.0))
    probed = probe(data.train, label, PROBED) if inputs.dim() == 4 else inputs
    if inputs.dim() == 4 and probed.min() >= 0 and probed.max() <= 1:
        return Domain(PIXELS, torch.ones(()), torch.zeros(()), (0.0, 1.0))
    return Domain(VALUES, torch.ones(()), torch.zeros(()))


def _inputs(batch: Any, label: str | None) -> Tensor:
    found = divide(batch, label).inputs
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise UserError(
            "attacks follow gradients, so the input of a sample must be one tensor of floating-point numbers, and here it is "
            f"{shown(found)}; for tokens there are corruptions (ddl attack --method corruptions)"
        )
    return found


def probe(train: Any, label: str | None, most: int) -> Tensor:
    """Return the inputs of at most `most` training samples at equal distances; of a stream, of the first sample."""
    if isinstance(train, StreamSplit):
        return _inputs(first_batch(train), label)
    batch = train.batch(equally_spaced(len(train), most))
    return _inputs(first_batch(train) if batch is None else batch, label)


def _deviations(rows: Tensor, columns: list[dict[str, Any]]) -> Tensor:
    """Return the standard deviation of each input that is a number, 0 for the inputs of texts."""
    widths = [len(column["categories"]) if column["kind"] == "onehot" else 1 for column in columns]
    is_number = [column["kind"] == "number" for column in columns]
    free = torch.tensor(is_number).repeat_interleave(torch.tensor(widths))
    assert math.prod(free.shape) == rows.shape[1], "each input belongs to a column"
    return rows.double().std(0, correction=0).where(free, 0.0)
