"""The outcome of each strategy's run, and the rows of the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cli.runs import records
from cli.runs.statistics import interquartile_mean, interval
from cli.runs.tables import Row

Record = dict[str, Any]

ENDED = "ended"
LOSS = "loss"
"""The metric that improves by falling. All other metrics improve by rising."""
RETURN = "return"
"""The metric of agents."""
_SPREAD = tuple(f"{RETURN}_{word}" for word in ("median", "iqm", "min", "max"))
"""Figures over the episodes of one evaluation, which the table leaves out."""
_PLACE = {"kind", "step", "epoch", "env_steps", "seconds", "bytes_sent"}
"""Fields of an evaluation that are no metrics."""
_STRATEGY_FIGURES = ("staleness", "largest_gap", "drift", "dropped", "epsilon", "epsilon_ranks")
"""Fields of a strategy's summary that measure the distance between ranks or the loss of privacy."""


@dataclass(frozen=True)
class Outcome:
    """One strategy's run with one seed.

    An evaluation has `step`, `seconds`, `bytes_sent` and the metrics, and `env_steps` of an agent.
    `failure` is the reason of a failure.
    """

    strategy: str
    folder: str
    evaluations: list[Record]
    summary: Record
    failure: str | None = None
    seed: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        found = _numbers(self.summary.get("eval", {}))
        return {name: float(value) for name, value in found.items() if name not in _SPREAD}

    def first(self, metric: str, value: float) -> Record | None:
        """Return the first evaluation that reaches `value`, or None."""
        falls = metric == LOSS
        reached = (e for e in self.evaluations if metric in e and (e[metric] <= value if falls else e[metric] >= value))
        return next(reached, None)


def read(strategy: str, folder: Path, failure: str | None, seed: int = 0) -> Outcome:
    """Read the outcome of the run in `folder`. The folder of a failed run may not exist."""
    file, summary = folder / "metrics.jsonl", records.summary(folder)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # A metric that is not finite is null in the file; it is left out here.
    evaluations = [_numbers(e) for e in map(json.loads, lines) if e["kind"] == "eval"]
    if not evaluations and failure is None:
        failure = "no evaluation to compare: the data has no held-out samples"
    return Outcome(strategy, str(folder), _corrected(evaluations, summary), summary, failure, seed)


def strategies(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the outcomes of each strategy, which are of different seeds."""
    names = dict.fromkeys(o.strategy for o in outcomes)
    return [[o for o in outcomes if o.strategy == name] for name in names]


def rows(outcomes: Sequence[Outcome], goal: tuple[str, float] | None, chosen: str | None = None) -> list[Row]:
    """Return one row per strategy, all with the same columns.

    Time and bytes are also given relative to the first strategy that succeeded. Figures of several
    seeds are means; those of the metric `chosen` also have the interquartile mean and its interval.
    """
    found = [_of_seeds(group, goal, chosen or metric(outcomes)) for group in strategies(outcomes)]
    done = [row for row in found if "seconds" in row]
    for row, base in ((row, done[0]) for row in done):
        row["over first"] = row["seconds"] / base["seconds"]
        row["bytes over first"] = row["MB sent"] / base["MB sent"] if base["MB sent"] else None
    names = dict.fromkeys(name for row in found for name in row if name != ENDED)
    asked = {name for o in outcomes for name in _reached(o, goal)}
    shown = [name for name in names if name in asked or any(row.get(name) is not None for row in found)]
    return [{name: row.get(name) for name in (*shown, ENDED)} for row in found]


def measured(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the metrics that any evaluation has."""
    return sorted({name for o in outcomes for e in o.evaluations for name in e} - _PLACE)


def metric(outcomes: Sequence[Outcome]) -> str:
    """Return the metric to plot: the return or the accuracy if any run has it."""
    names = dict.fromkeys(name for o in outcomes for name in o.metrics)
    return next((name for name in (RETURN, "accuracy", *names) if name in names), LOSS)


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


def _of_seeds(outcomes: Sequence[Outcome], goal: tuple[str, float] | None, metric: str) -> Row:
    """Return the row of one strategy. A run that failed counts in `ended` only."""
    done, failures = [o for o in outcomes if not o.failure], [o.failure for o in outcomes if o.failure]
    found = [_row(o, goal) for o in done]
    if not found:
        return {"strategy": outcomes[0].strategy, ENDED: f"failed: {failures[0]}"}
    if len(outcomes) == 1:
        return found[0]
    row: Row = {}
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one[name] for one in found if one.get(name) is not None]
        row[name] = _mean(values)
        if name == metric:
            low, high = interval([values])
            row |= {f"{name} IQM": float(interquartile_mean(values)), "IQM low": low, "IQM high": high}
    if goal is not None:
        row[f"reached {goal[0]} {goal[1]:g}"] = f"{sum(o.first(*goal) is not None for o in done)} of {len(outcomes)}"
    if failures:
        row[ENDED] = f"{len(failures)} of {len(outcomes)} failed: {failures[0]}"
    return row


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, rounded if all are whole; other values without repetitions."""
    if any(isinstance(value, str) for value in values):
        return ", ".join(dict.fromkeys(values))
    if not values:
        return None
    return round(fmean(values)) if all(isinstance(value, int) for value in values) else fmean(values)


def _row(outcome: Outcome, goal: tuple[str, float] | None) -> Row:
    last, summary = outcome.evaluations[-1], outcome.summary
    acts = "env_steps" in last
    return {
        "strategy": outcome.strategy,
        **outcome.metrics,
        "steps": last["step"],
        **({"env steps": last["env_steps"]} if acts else {}),
        "seconds": last["seconds"],
        "over first": None,
        "steps/s": summary["steps_per_second"],
        **({"env steps/s": round(summary["env_steps_per_second"])} if acts else {}),
        "MB sent": last["bytes_sent"] / 1e6,
        "bytes over first": None,
        **_reached(outcome, goal),
        **(_efficiency(last) if acts and RETURN in last else {}),
        **_strategy_figures(summary),
        ENDED: summary["ended"],
    }


def _efficiency(last: Record) -> Row:
    """Return what the last evaluation of an agent has for each unit that it cost."""
    costs = {"1000 env steps": last["env_steps"] / 1e3, "s": last["seconds"], "MB": last["bytes_sent"] / 1e6}
    return {f"{RETURN} per {unit}": last[RETURN] / cost if cost else None for unit, cost in costs.items()}


def _reached(outcome: Outcome, goal: tuple[str, float] | None) -> Row:
    if goal is None:
        return {}
    name, value = goal
    at = outcome.first(name, value)
    text = f"{name} {value:g}"
    acts = any("env_steps" in e for e in outcome.evaluations)
    return {
        **({f"env steps to {text}": at and at["env_steps"]} if acts else {}),
        f"s to {text}": at and at["seconds"],
        f"MB to {text}": at and at["bytes_sent"] / 1e6,
    }


def _strategy_figures(summary: Record) -> Row:
    figures = {name: summary[name] for name in _STRATEGY_FIGURES if name in summary}
    flat: Row = {}
    for name, value in figures.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {word}".strip(): v for word, v in inner if isinstance(v, int | float)}
    return flat
