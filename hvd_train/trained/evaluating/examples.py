"""The samples that a report names: their files, and small pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_train.data.base import Dataset
from hvd_train.data.nesting import first_sample
from hvd_train.data.preprocessing import has_spectra
from hvd_train.data.samples import FileItems, SampleSplit
from hvd_train.data.survey.drawings import drawings
from hvd_train.data.survey.samples import fields
from hvd_train.trained.evaluating.worst import Row


def described(rows: Sequence[Row], split: Any, data: Dataset) -> dict[str, Any]:
    """Return the rows `worst` with the files of their samples, and `drawings` of the samples."""
    items = split.items if isinstance(split, SampleSplit) else None
    named = [{**row, "file": items.file(row["position"])} for row in rows] if isinstance(items, FileItems) else rows
    shown = [fields(first_sample(split.batch(torch.tensor([row["position"]])))) for row in rows]
    return {"worst": list(named), "drawings": drawings(shown, spectra=has_spectra(data)) if shown else []}
