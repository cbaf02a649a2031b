"""The metrics that `--metrics` names: short names, and classes of torchmetrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_train.config import torchmetrics_source
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import MetricSection
from hvd_train.errors import UserError, install_remedy, nearest
from hvd_train.text.names import match

_MACRO = {"average": "macro"}
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "f1": {"name": "F1Score", **_MACRO},
    "precision": {"name": "Precision", **_MACRO},
    "recall": {"name": "Recall", **_MACRO},
    "specificity": {"name": "Specificity", **_MACRO},
    "balanced_accuracy": {"name": "Accuracy", **_MACRO},
    "auroc": {"name": "AUROC"},
    "average_precision": {"name": "AveragePrecision"},
    "ece": {"name": "CalibrationError"},
    "mcc": {"name": "MatthewsCorrCoef"},
    "kappa": {"name": "CohenKappa"},
    "iou": {"name": "JaccardIndex"},
}
"""Short names for classes and labels. A mean over classes counts each class once."""
NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "mse": {"name": "MeanSquaredError"},
    "rmse": {"name": "MeanSquaredError", "squared": False},
    "mae": {"name": "MeanAbsoluteError"},
    "mape": {"name": "MeanAbsolutePercentageError"},
    "r2": {"name": "R2Score"},
    "pearson": {"name": "PearsonCorrCoef"},
    "spearman": {"name": "SpearmanCorrCoef"},
}
"""Short names for numbers to predict."""
_OF_TASKS = {"classification": CLASSES, "language": CLASSES, "seq2seq": CLASSES, "regression": NUMBERS}


def sections(text: str, task: str) -> list[MetricSection]:
    """Return the metrics in a list such as `f1,auroc,CohenKappa`, for data of `task`.

    UserError for a name that is unknown, or of a metric for another task.
    """
    if not torchmetrics_source.is_installed():
        raise UserError(f"--metrics needs torchmetrics, which is not installed; {install_remedy('eval')}")
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError("--metrics: expected names such as f1,auroc")
    return [read_section(MetricSection, Document(_values(word, task), "--metrics")) for word in words]


def _values(word: str, task: str) -> dict[str, Any]:
    of_task = _OF_TASKS.get(task, {**CLASSES, **NUMBERS})
    short = match(word, of_task)
    if short is not None:
        return {**of_task[short], "key": short}
    if match(word, {**CLASSES, **NUMBERS}):
        raise UserError(f"--metrics: '{word}' does not fit the task of the run, {task}{nearest(word, of_task)}")
    name = match(word, torchmetrics_source.modules())
    if name is None:
        raise UserError(f"--metrics: no '{word}'{_choices(word, of_task)}")
    return {"name": name}


def _choices(word: str, of_task: Mapping[str, Any]) -> str:
    """Return the end of a message: the nearest of all names, and the short ones."""
    short, _, known = nearest(word, of_task).partition(" (choices: ")
    close, _, _ = nearest(word, torchmetrics_source.modules()).partition(" (choices: ")
    return f"{short or close} (choices: {known.rstrip(')')}, and the names of ddl list metrics)"
