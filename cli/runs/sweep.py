"""Expand sweeps, which give fields several values, into the overrides of each combination."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product

from cli.hosts.notation import MOST
from hvd_train.errors import UserError

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def combinations(sweeps: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of each combination of `optimizer.lr=0.1,0.01` and `seed=0..4`.

    The last field varies fastest. UserError for an invalid sweep or too many combinations.
    """
    choices = [_choices(text) for text in sweeps]
    if len({c[0].partition("=")[0] for c in choices}) < len(choices):
        raise UserError("--sweep: a field is given twice; give all its values at once, such as seed=0..4,7")
    count = math.prod(map(len, choices))
    if count > MOST:
        raise UserError(f"--sweep: {count:,} combinations; expected up to {MOST:,}")
    return tuple(product(*choices)) if choices else ()


def _choices(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise UserError(
            f"--sweep: '{text}' is not a sweep; expected FIELD=VALUE,VALUE or FIELD=FIRST..LAST, such as seed=0..4"
        )
    return [f"{key}={value}" for item in items(values, ",") for value in _values(item, text)]


def items(text: str, separator: str) -> list[str]:
    """Split `text` at separators outside of brackets, braces and quotes: `[1,2],[3]` is two parts."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += not quote and (letter in "[{") - (letter in "]}")
        if letter == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _values(item: str, text: str) -> list[str]:
    if not item:
        raise UserError(f"--sweep: '{text}' has an empty value")
    match = _RANGE.fullmatch(item)
    if not match:
        return [item]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MOST:
        raise UserError(
            f"--sweep: '{item}' in '{text}' is not a range; expected FIRST..LAST such as 0..4, with up to {MOST:,} values"
        )
    return [str(number) for number in range(first, last + 1)]
