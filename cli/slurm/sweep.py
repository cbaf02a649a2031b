"""Sweeps: fields that take several values, as the overrides of each combination."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product

from cli.slurm.notation import MOST
from hvd_train.errors import UserError

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def combinations(sweeps: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The overrides of each combination of `optimizer.lr=0.1,0.01` and `seed=0..4`; the last one varies first."""
    choices = [_choices(text) for text in sweeps]
    if len({c[0].partition("=")[0] for c in choices}) < len(choices):
        raise UserError("--sweep: a field is swept twice; give all its values at once, as seed=0..4,7")
    count = math.prod(map(len, choices))
    if count > MOST:
        raise UserError(f"--sweep: {count:,} combinations; expected up to {MOST:,}")
    return tuple(product(*choices)) if choices else ()


def _choices(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise UserError(f"--sweep: '{text}' is no sweep; expected FIELD=VALUE,VALUE or FIELD=FIRST..LAST, as seed=0..4")
    return [f"{key}={value}" for item in items(values, ",") for value in _values(item, text)]


def items(text: str, separator: str) -> list[str]:
    """The parts between separators that are inside no bracket, brace or quote: `[1,2],[3]` has two between commas."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += not quote and (letter in "[{") - (letter in "]}")
        if letter == separator and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return found


def _values(item: str, text: str) -> list[str]:
    if not item:
        raise UserError(f"--sweep: '{text}' has an empty value")
    found = _RANGE.fullmatch(item)
    if not found:
        return [item]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MOST:
        raise UserError(f"--sweep: '{item}' in '{text}' is no range; expected FIRST..LAST, as 0..4, of up to {MOST:,}")
    return [str(number) for number in range(first, last + 1)]
