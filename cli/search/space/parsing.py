"""The section `space:` and the options `--set` as a `Space`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.search.space import constraints as checks
from cli.search.space import notation, words
from cli.search.space.dimensions import Condition, Dimension, Space
from cli.search.space.domains import Uniform
from hvd_train.errors import UserError, nearest

_WHEN = re.compile(r"(.*[)\]])\s+when\s+(.*)", re.DOTALL)
_KEYS = ("range", "when")
_FIELD = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


@dataclass(frozen=True)
class _Entry:
    """What the user wrote for one field."""

    field: str
    place: str
    domain: Any
    when: Any = None

    def mistake(self, text: object) -> str:
        return f"{self.place}: {self.field}: {text}"


def parse_space(
    section: Mapping[str, Any], constraints: Sequence[str], sets: Sequence[str], place: Callable[[str], str]
) -> Space:
    """Return the space of the fields of `section`, in which `sets` such as `optimizer.lr=log(1e-4,1e-1)` replace fields.

    `place` returns `file:line` of a field of `section`. UserError has one line for each mistake.
    """
    mistakes: list[str] = []
    given = [_from_file(field, value, place(field), mistakes) for field, value in section.items()]
    options = [_from_option(text, mistakes) for text in sets]
    entries = {e.field: e for e in [*given, *options] if e}
    for earlier, later in _repeated([e for e in options if e]):
        mistakes.append(later.mistake(f"is set twice, also by {earlier.place}"))
    dimensions = {field: d for field, e in entries.items() if (d := _dimension(e, mistakes))}
    mistakes += _overlaps(entries)
    mistakes += (m for e in entries.values() if e.field in dimensions for m in _condition(e, entries, dimensions))
    mistakes += _constraint_mistakes(constraints)
    ordered = [] if mistakes else _ordered(dimensions, mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    return Space(tuple(ordered), tuple(constraints))


def _from_file(field: str, value: Any, place: str, mistakes: list[str]) -> _Entry | None:
    if not _FIELD.fullmatch(field):
        mistakes.append(f"{place}: '{field}' is no field; expected a name with dots, such as optimizer.lr")
        return None
    if not isinstance(value, dict):
        return _Entry(field, place, value)
    unknown = [key for key in value if key not in _KEYS]
    if unknown or "range" not in value:
        what = f"unknown key '{unknown[0]}'{nearest(unknown[0], _KEYS)}" if unknown else "'range' is missing"
        mistakes.append(f"{place}: {field}: {what}")
        return None
    return _Entry(field, place, value["range"], value.get("when"))


def _from_option(text: str, mistakes: list[str]) -> _Entry | None:
    field, equals, written = text.partition("=")
    place = f"--set '{text}'"
    if not equals or not _FIELD.fullmatch(field.strip()):
        mistakes.append(f"{place}: expected FIELD=RANGE, such as 'optimizer.lr=log(1e-4,1e-1)'")
        return None
    match = _WHEN.fullmatch(written)
    try:
        value = words.read(match[1] if match else written)
    except UserError:
        mistakes.append(f"{place}: '{written}' is not valid YAML")
        return None
    return _Entry(field.strip(), place, value, match[2] if match else None)


def _repeated(entries: list[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    first: dict[str, _Entry] = {}
    for entry in entries:
        if entry.field in first:
            yield first[entry.field], entry
        first.setdefault(entry.field, entry)


def _dimension(entry: _Entry, mistakes: list[str]) -> Dimension | None:
    try:
        when = None if entry.when is None else notation.condition(entry.when)
        domain = notation.domain(entry.domain)
    except UserError as error:
        mistakes.append(entry.mistake(error))
        return None
    return Dimension(entry.field, domain, when and Condition(when[0], tuple(when[1])), entry.place)


def _overlaps(entries: Mapping[str, _Entry]) -> Iterator[str]:
    for field, entry in entries.items():
        for above in entries:
            if field.startswith(f"{above}."):
                yield entry.mistake(f"is varied, and so is the section '{above}'; vary one of them")


def _condition(entry: _Entry, entries: Mapping[str, _Entry], known: dict[str, Dimension]) -> Iterator[str]:
    """Yield what is wrong with the condition of `entry`; make its values those of the domain in `known`."""
    when = known[entry.field].when
    if when is None:
        return
    if when.field not in entries or when.field == entry.field:
        others = [field for field in entries if field != entry.field]
        yield entry.mistake(f"when: '{when.field}' is not varied{nearest(when.field, others)}")
    elif when.field in known:
        domain = known[when.field].domain
        for value in when.values:
            if not domain.contains(value):
                yield entry.mistake(f"when: {words.write(value)} is no value of {when.field}, which has {domain}")
        if isinstance(domain, Uniform) and all(map(domain.contains, when.values)):
            floats = Condition(when.field, tuple(map(float, when.values)))
            known[entry.field] = Dimension(entry.field, known[entry.field].domain, floats, entry.place)


def _constraint_mistakes(constraints: Sequence[str]) -> Iterator[str]:
    for text in constraints:
        try:
            checks.parse(text)
        except UserError as error:
            yield f"constraint '{text}': {error}"


def _ordered(dimensions: Mapping[str, Dimension], mistakes: list[str]) -> list[Dimension]:
    """Return the dimensions in the user's order, but each after the one that its condition names."""
    ordered: dict[str, Dimension] = {}
    waiting = list(dimensions.values())
    while waiting:
        ready = [d for d in waiting if d.when is None or d.when.field in ordered]
        if not ready:
            cycle = ", ".join(d.field for d in waiting)
            mistakes.append(f"{waiting[0].place}: {waiting[0].field}: the conditions of {cycle} depend on one another")
            break
        ordered |= {d.field: d for d in ready}
        waiting = [d for d in waiting if d.field not in ordered]
    return list(ordered.values())
