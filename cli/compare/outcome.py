"""What came of the run of each strategy, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.slurm import runs
from cli.slurm.tables import Row

Record = dict[str, Any]

ENDED = "ended"
FALLS = "loss"
"""The metric that falls; others rise."""
_MEANT = ("staleness", "largest_gap", "drift", "dropped", "epsilon", "epsilon_ranks")
"""What a strategy's summary says of how far ranks were apart, or of what it cost in privacy."""


@dataclass(frozen=True)
class Outcome:
    """One strategy's run: its evaluations (step, seconds, bytes_sent, metrics), and why it failed if it did."""

    strategy: str
    folder: str
    evaluations: list[Record]
    summary: Record
    failure: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in _without_null(self.summary.get("eval", {})).items()}

    def first(self, metric: str, value: float) -> Record | None:
        """The first evaluation that reaches `value`."""
        falls = metric == FALLS
        reached = (e for e in self.evaluations if metric in e and (e[metric] <= value if falls else e[metric] >= value))
        return next(reached, None)


def read(strategy: str, folder: Path, failure: str | None) -> Outcome:
    """The outcome of the run in `folder`, which need not exist where it failed."""
    file, summary = folder / "metrics.jsonl", runs.summary(folder)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # A metric that was no finite number is null in the file; here it is absent.
    evaluations = [_without_null(e) for e in map(json.loads, lines) if e["kind"] == "eval"]
    if not evaluations and failure is None:
        failure = "no evaluation to compare by: the data has no held-out samples"
    return Outcome(strategy, str(folder), _corrected(evaluations, summary), summary, failure)


def rows(outcomes: Sequence[Outcome], target: tuple[str, float] | None) -> list[Row]:
    """A row for each, of the same columns; time and bytes also over those of the first that succeeded."""
    done = [o for o in outcomes if not o.failure]
    found = [_row(o, target, done[0]) if not o.failure else _failed(o) for o in outcomes]
    names = dict.fromkeys(name for row in found for name in row if name != ENDED)
    asked = _reached(outcomes[0], target) if outcomes else {}
    shown = [name for name in names if name in asked or any(row.get(name) is not None for row in found)]
    return [{name: row.get(name) for name in (*shown, ENDED)} for row in found]


def metric(outcomes: Sequence[Outcome]) -> str:
    """What is drawn: the accuracy where there is one."""
    names = dict.fromkeys(name for o in outcomes for name in o.metrics)
    return "accuracy" if "accuracy" in names else next(iter(names), FALLS)


def _without_null(values: Record) -> Record:
    return {name: value for name, value in values.items() if value is not None}


def _corrected(evaluations: list[Record], summary: Record) -> list[Record]:
    """Bytes of all ranks: where one rank went alone it took the others' for as many as its own, and the end knows better."""
    total = sum(filter(None, summary.get("bytes_of_ranks", [])))
    last = evaluations[-1]["bytes_sent"] if evaluations else 0
    factor = total / last if total and last else 1.0
    return [{**e, "bytes_sent": round(factor * e["bytes_sent"])} for e in evaluations]


def _row(outcome: Outcome, target: tuple[str, float] | None, first: Outcome) -> Row:
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
        **_reached(outcome, target),
        **_meant(outcome.summary),
        ENDED: outcome.summary["ended"],
    }


def _failed(outcome: Outcome) -> Row:
    return {"strategy": outcome.strategy, ENDED: f"failed: {outcome.failure}"}


def _reached(outcome: Outcome, target: tuple[str, float] | None) -> Row:
    if target is None:
        return {}
    name, value = target
    at = outcome.first(name, value)
    goal = f"{name} {value:g}"
    return {f"s to {goal}": at and at["seconds"], f"MB to {goal}": at and at["bytes_sent"] / 1e6}


def _meant(summary: Record) -> Row:
    found = {name: summary[name] for name in _MEANT if name in summary}
    flat: Row = {}
    for name, value in found.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {word}".strip(): v for word, v in inner if isinstance(v, int | float)}
    return flat
