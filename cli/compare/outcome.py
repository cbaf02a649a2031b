"""The outcome of each strategy's run, and the rows of the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.runs import records
from cli.runs.tables import Row

Record = dict[str, Any]

ENDED = "ended"
LOSS = "loss"
"""The metric that improves by falling. All other metrics improve by rising."""
_STRATEGY_FIGURES = ("staleness", "largest_gap", "drift", "dropped", "epsilon", "epsilon_ranks")
"""Fields of a strategy's summary that measure the distance between ranks or the loss of privacy."""


@dataclass(frozen=True)
class Outcome:
    """One strategy's run.

    An evaluation has `step`, `seconds`, `bytes_sent` and the metrics. `failure` is the reason of a
    failure.
    """

    strategy: str
    folder: str
    evaluations: list[Record]
    summary: Record
    failure: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in _numbers(self.summary.get("eval", {})).items()}

    def first(self, metric: str, value: float) -> Record | None:
        """Return the first evaluation that reaches `value`, or None."""
        falls = metric == LOSS
        reached = (e for e in self.evaluations if metric in e and (e[metric] <= value if falls else e[metric] >= value))
        return next(reached, None)


def read(strategy: str, folder: Path, failure: str | None) -> Outcome:
    """Read the outcome of the run in `folder`. The folder of a failed run may not exist."""
    file, summary = folder / "metrics.jsonl", records.summary(folder)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # A metric that is not finite is null in the file; it is left out here.
    evaluations = [_numbers(e) for e in map(json.loads, lines) if e["kind"] == "eval"]
    if not evaluations and failure is None:
        failure = "no evaluation to compare: the data has no held-out samples"
    return Outcome(strategy, str(folder), _corrected(evaluations, summary), summary, failure)


def rows(outcomes: Sequence[Outcome], goal: tuple[str, float] | None) -> list[Row]:
    """Return one row per outcome, all with the same columns.

    Time and bytes are also given relative to the first run that succeeded.
    """
    done = [o for o in outcomes if not o.failure]
    found = [_row(o, goal, done[0]) if not o.failure else _failed(o) for o in outcomes]
    names = dict.fromkeys(name for row in found for name in row if name != ENDED)
    asked = _reached(outcomes[0], goal) if outcomes else {}
    shown = [name for name in names if name in asked or any(row.get(name) is not None for row in found)]
    return [{name: row.get(name) for name in (*shown, ENDED)} for row in found]


def metric(outcomes: Sequence[Outcome]) -> str:
    """Return the metric to plot: the accuracy if any run has it."""
    names = dict.fromkeys(name for o in outcomes for name in o.metrics)
    return "accuracy" if "accuracy" in names else next(iter(names), LOSS)


def _numbers(values: Record) -> Record:
    """Return the values that are not null or lists."""
    return {name: value for name, value in values.items() if value is not None and not isinstance(value, list)}


def _corrected(evaluations: list[Record], summary: Record) -> list[Record]:
    """Scale `bytes_sent` so that the last evaluation matches the total of all ranks in the summary.

    Rank 0 of an asynchronous strategy estimates the bytes of the other ranks by its own.
    """
    total = sum(filter(None, summary.get("bytes_of_ranks", [])))
    last = evaluations[-1]["bytes_sent"] if evaluations else 0
    factor = total / last if total and last else 1.0
    return [{**e, "bytes_sent": round(factor * e["bytes_sent"])} for e in evaluations]


def _row(outcome: Outcome, goal: tuple[str, float] | None, first: Outcome) -> Row:
    last, base = outcome.evaluations[-1], first.evaluations[-1]
    return {
        "strategy": outcome.strategy,
        **outcome.metrics,
        "steps": last["step"],
        "seconds": last["seconds"],
        "over first": last["seconds"] / base["seconds"],
        "steps/s": outcome.summary["steps_per_second"],
        "MB sent": last["bytes_sent"] / 1e6,
        "bytes over first": last["bytes_sent"] / base["bytes_sent"] if base["bytes_sent"] else None,
        **_reached(outcome, goal),
        **_strategy_figures(outcome.summary),
        ENDED: outcome.summary["ended"],
    }


def _failed(outcome: Outcome) -> Row:
    return {"strategy": outcome.strategy, ENDED: f"failed: {outcome.failure}"}


def _reached(outcome: Outcome, goal: tuple[str, float] | None) -> Row:
    if goal is None:
        return {}
    name, value = goal
    at = outcome.first(name, value)
    text = f"{name} {value:g}"
    return {f"s to {text}": at and at["seconds"], f"MB to {text}": at and at["bytes_sent"] / 1e6}


def _strategy_figures(summary: Record) -> Row:
    figures = {name: summary[name] for name in _STRATEGY_FIGURES if name in summary}
    flat: Row = {}
    for name, value in figures.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {word}".strip(): v for word, v in inner if isinstance(v, int | float)}
    return flat
