"""Metrics that decide when a run ends, and which checkpoint is the best."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from hvd_train.compute.metrics.meter import Value
from hvd_train.errors import UserError, nearest

_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Objective:
    """A value of an evaluation, such as `f1_score`, `long/loss` or `confusion_matrix[0][1]`."""

    option: str
    """The option that names it."""
    name: str
    rises: bool
    """True if a larger value is better."""

    def value(self, metrics: Mapping[str, Value]) -> float:
        """Return the value with the sign that makes a larger one better.

        Raise UserError if the evaluation has no such number.
        """
        key = self.name.partition("[")[0]
        if key not in metrics:
            raise UserError(f"{self.option}: no metric '{key}' in the evaluation{nearest(key, metrics)}")
        found = metrics[key]
        for index in _INDEX.findall(self.name):
            if not isinstance(found, list) or int(index) >= len(found):
                raise UserError(f"{self.option}: '{self.name}' names no value of {key}")
            found = found[int(index)]
        if isinstance(found, list):
            raise UserError(f"{self.option}: '{self.name}' has several values; name one, such as {self.name}[0]")
        return self.signed(float(found))

    def signed(self, value: float) -> float:
        """Return `value` with the sign that makes a larger one better, or make that undone."""
        return value if self.rises else -value


def find(
    option: str,
    wanted: str,
    mode: Literal["min", "max"] | None,
    directions: Mapping[str, bool | None],
    splits: Collection[str],
) -> Objective:
    """Return the objective `wanted` of the option, matched in any case and with or without underscores.

    `directions` says for each name of a metric whether a larger value is better, None if it is not
    known; a metric of several values may follow with `_KEY`. `splits` are the names of evaluation
    splits that come before a name, as `SPLIT/`. Raise UserError for unknown names, and if the
    direction is known neither from `mode` nor from the metric.
    """
    split, slash, rest = wanted.rpartition("/")
    base, bracket, indices = rest.partition("[")
    if slash and split not in splits:
        raise UserError(f"{option}: no evaluation split '{split}'{nearest(split, splits)}")
    name = next((n for n in directions if _plain(n) == _plain(base)), None)
    metric = name or next((n for n in directions if base.startswith(f"{n}_")), None)
    if metric is None:
        raise UserError(f"{option}: no metric '{base}'{nearest(base, directions)}")
    rises = directions[metric] if mode is None else mode == "max"
    if rises is None:
        raise UserError(
            f"{option}: '{wanted}' does not say whether a larger value is better; give the mode, min or max, beside it"
        )
    return Objective(option, f"{split}{slash}{name or base}{bracket}{indices}", rises)


def _plain(name: str) -> str:
    return name.casefold().replace("_", "")
