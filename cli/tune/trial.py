"""One trial of a search, and its runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cli.runs import records
from cli.tune.evaluations import Evaluations
from cli.tune.objectives import Objective, figures
from cli.tune.runner import Running
from cli.tune.slots import Slot
from hvd_train.state.checkpoint_folder import CHECKPOINTS, folders


@dataclass
class Part:
    """A run of a trial: the whole trial, or one of its folds."""

    folder: Path
    fold: int | None = None
    resume: Path | None = None
    """Checkpoint to begin from, if the trial continues another one with other values."""
    attempts: int = 0
    running: Running | None = None
    slots: tuple[Slot, ...] = ()
    began: float = 0.0
    asked: float | None = None
    """Monotonic time at which the run was asked to save and end."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.evaluations = Evaluations(self.folder)
        self.evaluations.new()
        self.decided = len(self.evaluations.rows)
        """Evaluations after which nobody need decide any more whether the trial goes on."""

    def stop(self) -> None:
        """Ask the run to save and end."""
        if self.running is not None and self.asked is None:
            self.asked = time.monotonic()
            self.running.stop()

    def is_complete(self) -> bool:
        """Return True if the run in the folder has come to its own end."""
        summary = records.summary(self.folder)
        failed = summary.get("slurm", {}).get("exit_code", 0)
        return not failed and not str(summary.get("ended", "stopped")).startswith("stopped")

    def source(self) -> Path | None:
        """Return what the next start resumes from, None for a start from the beginning.

        The folder of a run that did not save anything is removed.
        """
        if folders(self.folder / CHECKPOINTS):
            return self.folder
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.resume


@dataclass
class Trial:
    """A trial that runs or waits for slots."""

    number: int
    values: Mapping[str, Any]
    np: int
    parts: list[Part]
    pruned: bool = False
    failure: str | None = None

    @property
    def running(self) -> list[Part]:
        return [part for part in self.parts if part.running is not None]

    @property
    def waiting(self) -> list[Part]:
        """The runs that wait for slots: none once the trial is pruned or has failed."""
        if self.pruned or self.failure:
            return []
        return [part for part in self.parts if not part.ended and part.running is None]

    @property
    def active(self) -> bool:
        return bool(self.running or self.waiting)

    def stop(self) -> None:
        """Ask all runs to save and end."""
        for part in self.running:
            part.stop()

    def value_at(self, number: int, objective: Objective) -> float | None:
        """Return the mean of the objective at the evaluation `number` over the runs that have come so far."""
        rows = (p.evaluations.rows[number - 1] for p in self.parts if len(p.evaluations.rows) >= number)
        found = [value for value in map(objective.during, rows) if value is not None]
        return fmean(found) if found else None

    def outcome(self, objectives: Sequence[Objective]) -> tuple[list[float], dict[str, Any], dict[str, list[float]]]:
        """Return the values of the objectives, all figures, and the values of each fold.

        Values and figures of several folds are means; `NAME_std` is the standard deviation of an
        objective over the folds. UserError if a run does not have an objective.
        """
        of_parts = [figures(part.folder, part.evaluations.rows) for part in self.parts]
        values = [
            [objective.final(part.evaluations.rows, found) for objective in objectives]
            for part, found in zip(self.parts, of_parts, strict=True)
        ]
        folds = {str(p.fold): v for p, v in zip(self.parts, values, strict=True) if p.fold is not None}
        means = [fmean(column) for column in zip(*values, strict=True)]
        spread = {
            f"{objective.name}_std": stdev(column)
            for objective, column in zip(objectives, zip(*values, strict=True), strict=True)
            if len(column) > 1
        }
        return means, {**_means(of_parts), **spread}, folds


def _means(of_parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number over the runs that have it."""
    if len(of_parts) == 1:
        return dict(of_parts[0])
    names = dict.fromkeys(name for found in of_parts for name in found)
    columns = {n: [f[n] for f in of_parts if isinstance(f.get(n), int | float)] for n in names}
    return {name: fmean(column) for name, column in columns.items() if column}


def parts(folder: Path, folds: int, sources: Sequence[Path | None] = ()) -> list[Part]:
    """Return the runs of a trial with so many folds, which begin from the checkpoints `sources`."""
    each = sources or [None] * max(folds, 1)
    if not folds:
        return [Part(folder, resume=each[0])]
    return [Part(folder / f"fold-{fold}", fold, source) for fold, source in enumerate(each)]
