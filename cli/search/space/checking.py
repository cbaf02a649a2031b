"""Load the configuration at the edges of a space, so that mistakes show before any trial starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.search.space import constraints, words
from cli.search.space.dimensions import Dimension, Space, first
from cli.search.space.domains import Integer, same
from hvd_train.errors import UserError, nearest

Load = Callable[[Mapping[str, Any]], object]
"""Loads the configuration with the values of fields; UserError has one line for each mistake."""


@dataclass(frozen=True)
class _Probe:
    """A value to check: that of `dimension` in `wanted`, which also has those that its condition needs."""

    dimension: Dimension
    wanted: dict[str, Any]


def check_space(space: Space, load: Load) -> None:
    """Load every choice and both ends of every range, each under its own condition, but not their combinations.

    UserError has one line for each mistake.
    """
    mistakes: dict[str, None] = {}  # ordered, each once
    for dimension in space.dimensions:
        mistakes |= dict.fromkeys(_job_mistakes(dimension))
    mistakes |= dict.fromkeys(_unknown_names(space))
    if not mistakes:
        mistakes |= dict.fromkeys(_load_mistakes(space, load))
        mistakes |= dict.fromkeys(_constraint_mistakes(space))
    if mistakes:
        raise UserError("\n".join(mistakes))


def fields_of(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested `values` by names with dots: sections, the fields in them, and so on."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        fields[f"{above}{key}"] = value
        if isinstance(value, Mapping):
            fields |= fields_of(value, f"{above}{key}.")
    return fields


def _job_mistakes(dimension: Dimension) -> Iterator[str]:
    domain = dimension.domain
    if dimension.field == "np":
        is_whole = isinstance(domain, Integer) or all(type(v) is int for v in domain.probes())
        if not is_whole or min(domain.probes()) < 1:
            yield f"{dimension.place}: np: expected whole numbers from 1, got {domain}"


def _unknown_names(space: Space) -> Iterator[str]:
    known = {d.field for d in space.dimensions} | set(space.fixed)
    for text in space.constraints:
        for name in constraints.names(text):
            if name not in known:
                yield f"constraint '{text}': no field '{name}'{nearest(name, known)}"


def _load_mistakes(space: Space, load: Load) -> Iterator[str]:
    waiting, said = [p for p in _probes(space) if p.dimension.field != "np"], set[tuple[str, str]]()
    while waiting:
        together = _compatible(waiting)
        # One load checks a value of many dimensions. If it fails, each value is loaded apart to find the mistakes.
        for probe in together if _failures(load, point(space, _merged(together))) else ():
            values = point(space, probe.wanted)
            for line in _failures(load, values):
                if (probe.dimension.field, line) not in said:  # an unknown field is one mistake, whatever its value
                    said.add((probe.dimension.field, line))
                    yield _located(line, probe.dimension, space, values)
        waiting = [p for p in waiting if p not in together]


def _failures(load: Load, values: Mapping[str, Any]) -> list[str]:
    """Return the mistakes of the configuration with `values`."""
    try:
        load(values)
    except UserError as error:
        return str(error).splitlines()
    return []


def _located(line: str, probed: Dimension, space: Space, values: Mapping[str, Any]) -> str:
    """Return a mistake of the configuration at the place of the dimension that it names, else of the one `probed`."""
    for dimension in space.dimensions:
        if dimension.field in values:
            word = words.override(dimension.field, values[dimension.field])
            prefix = f"command line: '{word}': "
            if line.startswith(prefix):
                return f"{dimension.place}: {word}: {line.removeprefix(prefix).removeprefix(f'{dimension.field}: ')}"
    return f"{probed.place}: {words.override(probed.field, values[probed.field])}: {line}"


def _constraint_mistakes(space: Space) -> Iterator[str]:
    for probe in _probes(space):
        try:
            space.admits(point(space, probe.wanted))
        except UserError as error:
            yield str(error)


def _probes(space: Space) -> Iterator[_Probe]:
    for dimension in space.dimensions:
        for value in dimension.domain.probes():
            yield _Probe(dimension, {**_needed(space, dimension), dimension.field: value})


def _compatible(probes: Sequence[_Probe]) -> list[_Probe]:
    """Return the first of `probes` and those that can share a point with it."""
    together: list[_Probe] = []
    for probe in probes:
        merged = _merged(together)
        if all(same(merged[field], value) for field, value in probe.wanted.items() if field in merged):
            together.append(probe)
    return together


def _merged(probes: Sequence[_Probe]) -> dict[str, Any]:
    return {field: value for probe in probes for field, value in probe.wanted.items()}


def _needed(space: Space, dimension: Dimension) -> dict[str, Any]:
    """Return a value for each field on which the condition of `dimension` depends."""
    if dimension.when is None:
        return {}
    parent = next(d for d in space.dimensions if d.field == dimension.when.field)
    return {**_needed(space, parent), parent.field: dimension.when.values[0]}


def point(space: Space, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point with the `wanted` values, and the first value of each other field that is varied there."""
    values: dict[str, Any] = {}
    for dimension in space.dimensions:
        if dimension.varies(values):
            values[dimension.field] = wanted.get(dimension.field, first(dimension.domain))
    return values
