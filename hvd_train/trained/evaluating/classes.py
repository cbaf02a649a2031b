"""The report of a classification: one class for each sample, or for each position of a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.compute.metrics.layout import IGNORED, classes_last
from hvd_train.data.batch import Batch
from hvd_train.trained.evaluating.calibration import Calibration
from hvd_train.trained.evaluating.curves import ScoreBins, area_row, log_odds
from hvd_train.trained.evaluating.report import Names, counts, ratio, scored, summed
from hvd_train.trained.evaluating.worst import Row, Worst

MOST_CLASSES = 1000
"""The largest number of classes with a confusion matrix and curves, which take 65 MB for so many."""
CONFUSED = 10
"""Pairs of classes that are listed as confused."""


class ClassReport:
    """Counts the pairs of target and prediction, the scores of each class, and the confidence."""

    def __init__(self, names: Names, split: Any, ignored: int = IGNORED) -> None:
        number = len(names)
        self._names, self._ignored = names, ignored
        self._support, self._predicted, self._hits = (torch.zeros(number, dtype=torch.int64) for _ in range(3))
        few = number <= MOST_CLASSES
        self._confusion = torch.zeros(number * number, dtype=torch.int64) if few else None
        self._scores = ScoreBins(number) if few else None
        self._calibration, self._worst = Calibration(), Worst(split)

    def update(self, outputs: Any, batch: Batch) -> None:
        logs, targets = log_probabilities(scores(outputs), batch.targets)
        counted = (targets != self._ignored) & (targets != IGNORED)
        self._count(logs[counted], targets[counted])
        self._find_worst(logs, targets, counted, batch)

    def compute(self, comm: Communicator) -> dict[str, Any]:
        support, predicted, hits = summed(comm, torch.stack([self._support, self._predicted, self._hits])).tolist()
        rows: list[Row] = [
            {"class": name, "support": support[i], **scored(hits[i], predicted[i], support[i])}
            for i, name in enumerate(self._names)
        ]
        curves = self._scores.compute(comm) if self._scores else None
        if curves:
            rows = [{**row, **area_row(curve)} for row, curve in zip(rows, curves, strict=True)]
        confusion = summed(comm, self._confusion).view(len(rows), -1) if self._confusion is not None else None
        calibration = self._calibration.compute(comm)
        return {
            "kind": "classes",
            "figures": {"accuracy": ratio(sum(hits), sum(support)), "calibration_error": calibration["error"]},
            "rows": rows,
            "confusion": confusion.tolist() if confusion is not None else None,
            "confused": most_confused(confusion, self._names) if confusion is not None else [],
            "curves": [curve.points() for curve in curves] if curves else None,
            "calibration": calibration,
            "worst": self._worst.compute(comm),
        }

    def _count(self, logs: Tensor, targets: Tensor) -> None:
        number = len(self._names)
        confidence, chosen = logs.exp().max(1)
        right = chosen == targets
        self._support += counts(targets, number)
        self._predicted += counts(chosen, number)
        self._hits += counts(targets[right], number)
        self._calibration.update(confidence, right)
        if self._confusion is not None:
            self._confusion += counts(targets * number + chosen, number * number)
        if self._scores is not None:
            self._scores.update(log_odds(logs), functional.one_hot(targets, number).bool())

    def _find_worst(self, logs: Tensor, targets: Tensor, counted: Tensor, batch: Batch) -> None:
        of_target = logs.gather(1, targets.where(counted, 0)[:, None])[:, 0]
        losses = (-of_target).where(counted, 0).view(batch.samples, -1)
        chosen, number = logs.argmax(1), counted.view(batch.samples, -1).sum(1)

        def describe(i: int) -> Row:
            if losses.shape[1] > 1:
                wrong = ((chosen != targets) & counted).view(batch.samples, -1)[i].sum()
                return {"wrong_positions": int(wrong), "positions": int(number[i])}
            return {
                "target": self._names[int(targets[i])] if counted[i] else None,
                "prediction": self._names[int(chosen[i])],
                "probability": float(logs[i, chosen[i]].exp()),
                "target_probability": float(of_target[i].exp()),
            }

        self._worst.update(losses.sum(1) / number.clamp(min=1), batch, describe)


def log_probabilities(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (m, classes) in float64, and targets (m,), of all positions.

    Outputs are a score for each class, or one logit of the second of two classes.
    """
    aims = targets.reshape(-1).long()
    if outputs.numel() == targets.numel():
        logits = outputs.double().reshape(-1)
        return torch.stack([functional.logsigmoid(-logits), functional.logsigmoid(logits)], 1), aims
    flat = classes_last(outputs, targets).reshape(len(aims), -1)
    return flat.double().log_softmax(-1), aims


def most_confused(confusion: Tensor, names: Names) -> list[Row]:
    """Return the pairs of target and other prediction with the most samples."""
    others = confusion.clone().fill_diagonal_(0).view(-1)
    order = torch.argsort(others, descending=True, stable=True)[:CONFUSED].tolist()
    return [
        {"target": names[i // len(names)], "prediction": names[i % len(names)], "samples": int(others[i])}
        for i in order
        if others[i]
    ]
