"""The notation of domains and conditions: `log(1e-4, 1e-1)`, `[16, 32]`, `optimizer.name in [SGD, Adam]`.

Errors are `UserError` without the place, which the caller knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cli.search.space import words
from cli.search.space.domains import Choice, Domain, Integer, Uniform, same
from hvd_train.errors import UserError, nearest

_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_FIELD = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_EQUALS = re.compile(rf"\s*({_FIELD})\s*==?\s*(.+)", re.DOTALL)
_IN = re.compile(rf"\s*({_FIELD})\s+in\s*(\[.*\])\s*", re.DOTALL)
LARGEST = 2**53
"""Optuna computes with floats, which have every whole number up to here."""


@dataclass(frozen=True)
class _Kind:
    """A kind of range: how its text reads, how many numbers it takes, and what makes it."""

    usage: str
    most: int
    make: Callable[..., Domain]


def domain(value: Any) -> Domain:
    """Return the domain that `value` describes: a text such as `log(1e-4, 1e-1)`, or a list of choices."""
    if isinstance(value, list):
        return _choice(value)
    call = _CALL.fullmatch(value) if isinstance(value, str) else None
    if call is None:
        usages = ", ".join(kind.usage for kind in _KINDS.values())
        raise UserError(f"expected a list of values or a range ({usages}), got {words.write(value)}")
    name, arguments = call[1].lower(), [a.strip() for a in call[2].split(",")]
    if name not in _KINDS:
        raise UserError(f"no range '{call[1]}'{nearest(name, _KINDS)}")
    kind = _KINDS[name]
    if not 2 <= len(arguments) <= kind.most:
        raise UserError(f"'{value}' has {len(arguments)} numbers; expected {kind.usage}")
    return kind.make(value, *(_number(a, value) for a in arguments))


def condition(text: Any) -> tuple[str, list[Any]]:
    """Return the field and the values of a condition: `optimizer.name=SGD`, `optimizer.name in [SGD, Adam]`."""
    if isinstance(text, str):
        if match := _IN.fullmatch(text):
            values = words.read(match[2])
            if values:
                return match[1], values
        elif match := _EQUALS.fullmatch(text):
            return match[1], [words.read(match[2])]
    raise UserError(
        f"when: '{text}' is no condition; expected FIELD=VALUE or FIELD in [VALUE, VALUE], such as optimizer.name=SGD"
    )


def _number(text: str, whole: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise UserError(f"'{text}' in '{whole}' is no finite number")
    return float(text)


def _uniform(text: str, low: float, high: float, step: float | None = None) -> Uniform:
    _check_range(text, low, high, step)
    return Uniform(low, high, step)


def _log(text: str, low: float, high: float) -> Uniform:
    _check_range(text, low, high, None)
    _check_positive(text, low)
    return Uniform(low, high, log=True)


def _integer(text: str, low: float, high: float, step: float = 1.0) -> Integer:
    for number in (low, high, step):
        if not number.is_integer():
            raise UserError(f"'{text}' has the fractional number {number!r}; expected whole numbers")
        if abs(number) > LARGEST:
            raise UserError(f"'{text}' has a number beyond 2**53")
    _check_range(text, low, high, step)
    return Integer(int(low), int(high), int(step))


def _logint(text: str, low: float, high: float) -> Integer:
    plain = _integer(text, low, high)
    _check_positive(text, low)
    return Integer(plain.low, plain.high, log=True)


def _check_range(text: str, low: float, high: float, step: float | None) -> None:
    if low >= high:
        raise UserError(f"'{text}' is empty; expected a first number below the second")
    if step is not None and step <= 0:
        raise UserError(f"'{text}' has the step {step:g}; expected a step above 0")
    if step is not None and step > high - low:
        raise UserError(f"'{text}' has a step that is larger than the range; expected up to {high - low:g}")


def _check_positive(text: str, low: float) -> None:
    if low <= 0:
        raise UserError(f"'{text}' is on a logarithmic scale; expected a first number above 0")


def _choice(values: list[Any]) -> Choice:
    if not values:
        raise UserError("the list is empty; expected at least one value")
    if not _is_finite(values):
        raise UserError(f"{words.write(values)} has a number that is not finite")
    for i, value in enumerate(values):
        if any(same(value, earlier) for earlier in values[:i]):
            raise UserError(f"{words.write(value)} is listed twice")
    return Choice(tuple(values))


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_KINDS = {
    "uniform": _Kind("uniform(a, b) or uniform(a, b, step)", 3, _uniform),
    "log": _Kind("log(a, b)", 2, _log),
    "int": _Kind("int(a, b) or int(a, b, step)", 3, _integer),
    "logint": _Kind("logint(a, b)", 2, _logint),
}
