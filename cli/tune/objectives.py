"""The figures that a search improves, read from the files of a run."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cli.compare.entries import goal
from cli.runs import records
from cli.search.schema import ObjectiveSection
from hvd_train.config.schema import Config
from hvd_train.errors import UserError, nearest
from hvd_train.state.checkpoint_folder import CHECKPOINTS, folders

Row = Mapping[str, Any]
_COSTS = ("seconds", "bytes_sent", "step", "env_steps")
"""Figures of a run that every evaluation has."""
_OF_RUN = ("parameters", "samples_per_second")
"""Figures that a run has at its end."""
_FALLS = {"loss", "rmse", "parameters", *_COSTS}
_RISES = {"accuracy", "return", "samples_per_second"}
_PLACE = {"kind", "step", "epoch"}


@dataclass(frozen=True)
class Objective:
    """A figure of a run, and which of two values is better.

    With `at`, a metric and a value, the figure is that of the first evaluation that reaches the value.
    """

    name: str
    mode: Literal["min", "max"]
    at: tuple[str, float] | None = None

    @property
    def title(self) -> str:
        return self.name if self.at is None else f"{self.name} to {self.at[0]} {self.at[1]:g}"

    def during(self, row: Row) -> float | None:
        """Return the figure in one evaluation of a running trial; None if it has none or is not a number."""
        value = row.get(self.name) if self.at is None else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def final(self, rows: Sequence[Row], figures: Mapping[str, Any]) -> float:
        """Return the figure of a run that ended; UserError says why it has none."""
        if self.at is None:
            found = figures.get(self.name)
        else:
            metric, wanted = self.at
            reached = (row for row in rows if metric in row and _reaches(row[metric], wanted, mode_of(metric)))
            found = next(reached, {}).get(self.name)
            if found is None:
                raise UserError(f"did not reach {metric} {wanted:g}")
        if not isinstance(found, int | float):
            raise UserError(f"no figure '{self.name}' in the run{nearest(self.name, known(rows))}")
        if not math.isfinite(found):
            raise UserError(f"{self.name} is {found}")
        return float(found)

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.mode == "max" else value < other


def known(rows: Sequence[Row]) -> list[str]:
    """Return the names of the figures that a run with these evaluations can have."""
    measured = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    return sorted((measured - _PLACE) | set(_OF_RUN) | {"step"})


def figures(folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of the run in `folder` as far as it came."""
    last = {name: value for name, value in (rows[-1] if rows else {}).items() if name != "kind"}
    summary = records.summary(folder)
    rate = {"samples_per_second": summary["samples_per_second"]} if "samples_per_second" in summary else {}
    saved = folders(folder / CHECKPOINTS)
    return {**last, **rate, **({"parameters": _elements(saved[0] / "model.safetensors")} if saved else {})}


def chosen(sections: Sequence[ObjectiveSection], config: Config) -> tuple[Objective, ...]:
    """Return the objectives of a search; UserError for one whose mode is unknown."""
    return tuple(map(_objective, sections)) or (_default(config),)


def parse(word: str) -> dict[str, Any]:
    """Return the fields of `--objective`: `accuracy`, `f1_score:max` or `seconds@accuracy=0.95`."""
    name, at_sign, at = word.partition("@")
    name, colon, mode = name.partition(":")
    fields = {"metric": name, **({"mode": mode} if colon else {}), **({"at": at} if at_sign else {})}
    if not name or (colon and mode not in ("min", "max")):
        raise UserError(
            f"--objective: '{word}' is no objective; expected a metric such as accuracy, f1_score:max or "
            "seconds@accuracy=0.95"
        )
    return fields


def mode_of(name: str) -> Literal["min", "max"] | None:
    """Return whether a figure improves by falling or by rising, None if that is not known."""
    last = name.rpartition("/")[2]
    return "min" if last in _FALLS else "max" if last in _RISES else None


def _objective(section: ObjectiveSection) -> Objective:
    mode = section.mode or mode_of(section.metric)
    if mode is None:
        raise UserError(
            f"search.objectives: is a larger '{section.metric}' better? say so: {section.metric}:max or "
            f"{section.metric}:min on the command line, mode: max or min in the file"
        )
    return Objective(section.metric, mode, goal(section.at, "search.objectives: at") if section.at else None)


def _default(config: Config) -> Objective:
    if config.agent is not None:
        return Objective("return", "max")
    wanted = config.train.converge
    mode = wanted.mode or mode_of(wanted.metric) if wanted is not None else None
    return Objective(wanted.metric, mode) if wanted is not None and mode else Objective("loss", "min")


def _reaches(value: float, wanted: float, mode: str | None) -> bool:
    return value <= wanted if mode == "min" else value >= wanted


def _elements(file: Path) -> int | None:
    """Return the number of elements of all tensors in a safetensors file, None if there is no such file."""
    try:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    except OSError:
        return None
    return sum(int(math.prod(tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")
