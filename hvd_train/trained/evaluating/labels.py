"""The report of several labels for each sample, each of which may be true."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.data.batch import Batch
from hvd_train.trained.evaluating.calibration import Calibration
from hvd_train.trained.evaluating.curves import ScoreBins, area_row
from hvd_train.trained.evaluating.report import Names, ratio, scored, summed
from hvd_train.trained.evaluating.worst import Row, Worst


class LabelReport:
    """Counts targets and predictions of each label. A label is predicted from a probability of 0.5 on.

    Targets of `missing` do not count.
    """

    def __init__(self, names: Names, split: Any, missing: float) -> None:
        self._names, self._missing = names, missing
        self._counts = torch.zeros(4, len(names), dtype=torch.int64)
        """Given, true, predicted, and truly predicted targets of each label."""
        self._samples = torch.zeros(2, dtype=torch.int64)
        """Samples, and those of which all labels are right."""
        self._scores, self._calibration, self._worst = ScoreBins(len(names)), Calibration(), Worst(split)

    def update(self, outputs: Any, batch: Batch) -> None:
        logits = scores(outputs).double().reshape(batch.samples, -1)
        targets = batch.targets.double().reshape(logits.shape)
        given = targets != self._missing
        positive, chosen = (targets > 0.5) & given, (logits >= 0) & given
        self._counts += torch.stack([part.sum(0) for part in (given, positive, chosen, positive & chosen)]).cpu()
        right = (positive == chosen).all(1)
        self._samples += torch.tensor([len(right), int(right.sum())])
        self._scores.update(logits, positive, given)
        self._calibration.update(logits.sigmoid()[given], positive[given])
        losses = functional.binary_cross_entropy_with_logits(logits, targets.where(given, 0), reduction="none")
        self._find_worst(losses.where(given, 0), given, positive, chosen, logits, batch)

    def compute(self, comm: Communicator) -> dict[str, Any]:
        given, positive, chosen, hits = summed(comm, self._counts).tolist()
        curves, calibration = self._scores.compute(comm), self._calibration.compute(comm)
        samples, right = summed(comm, self._samples).tolist()
        rows = [
            {"label": name, "given": given[i], "support": positive[i], **scored(hits[i], chosen[i], positive[i])}
            for i, name in enumerate(self._names)
        ]
        return {
            "kind": "labels",
            "figures": {"all_labels_right": ratio(right, samples), "calibration_error": calibration["error"]},
            "rows": [{**row, **area_row(curve)} for row, curve in zip(rows, curves, strict=True)],
            "curves": [curve.points() for curve in curves],
            "calibration": calibration,
            "worst": self._worst.compute(comm),
        }

    def _find_worst(
        self, losses: Tensor, given: Tensor, positive: Tensor, chosen: Tensor, logits: Tensor, batch: Batch
    ) -> None:
        def describe(i: int) -> Row:
            label = int(losses[i].argmax())
            return {
                "target": self._named(positive[i]),
                "prediction": self._named(chosen[i]),
                "label": self._names[label],
                "probability": float(logits[i, label].sigmoid()),
            }

        self._worst.update(losses.sum(1) / given.sum(1).clamp(min=1), batch, describe)

    def _named(self, labels: Tensor) -> list[str]:
        return [self._names[i] for i in labels.nonzero().flatten().tolist()]
