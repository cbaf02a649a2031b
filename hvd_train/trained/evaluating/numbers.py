"""The report of a regression: errors of each target, and points for a parity plot."""

from __future__ import annotations

from typing import Any

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.compute.calling import scores
from hvd_train.data.batch import Batch
from hvd_train.trained.evaluating import moments
from hvd_train.trained.evaluating.report import Names
from hvd_train.trained.evaluating.worst import Row, Worst, kept_positions

POINTS = 5000
"""The largest number of samples in the parity plot and the histogram of residuals."""
MOST_TARGETS = 9
"""Targets whose points are kept."""


class NumberReport:
    """Sums the errors of each target, and keeps the points of samples at equal distances."""

    def __init__(self, names: Names, split: Any, samples: int) -> None:
        self._names, self._split, self._every = names, split, max(1, -(-samples // POINTS))
        self._moments: moments.Moments | None = None
        self._points: list[tuple[list[float], list[float]]] = []
        self._worst = Worst(split)

    def update(self, outputs: Any, batch: Batch) -> None:
        predictions = scores(outputs).double().reshape(batch.samples, -1).cpu()
        targets = batch.targets.double().reshape(predictions.shape).cpu()
        self._moments = moments.merge(self._moments, moments.of(predictions, targets))
        positions = kept_positions(self._split, batch)
        self._points += [
            (targets[i, :MOST_TARGETS].tolist(), predictions[i, :MOST_TARGETS].tolist())
            for i, position in enumerate(positions)
            if position % self._every == 0
        ]

        def describe(i: int) -> Row:
            return {"target": targets[i].tolist(), "prediction": predictions[i].tolist()}

        self._worst.update((predictions - targets).square().mean(1), batch, describe)

    def compute(self, comm: Communicator) -> dict[str, Any]:
        found = moments.of_all_ranks(self._moments, comm)
        rows = moments.rows(found, self._names) if found else []
        points = [point for of_rank in gather_json(comm, self._points) for point in of_rank]
        figures = {name: rows[0][name] for name in ("rmse", "mae", "r2", "bias")} if len(rows) == 1 else {}
        return {
            "kind": "numbers",
            "figures": figures,
            "rows": rows,
            "points": {
                "every": self._every,
                "targets": [target for target, _ in points],
                "predictions": [prediction for _, prediction in points],
            },
            "worst": self._worst.compute(comm),
        }
