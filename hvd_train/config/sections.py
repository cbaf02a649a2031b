"""The sections within a section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from hvd_train.config.document import Path_
from hvd_train.config.section import Section


def inner_sections(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Yield the name and the type of each field of `kind` that is a section."""
    for key, info in kind.model_fields.items():
        if get_origin(info.annotation) not in (list, tuple):
            for choice in get_args(info.annotation) or (info.annotation,):
                if _is_section(choice):
                    yield key, choice


def listed_sections(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Yield name and item type of each field of `kind` that is a list of sections."""
    for key in kind.model_fields:
        if items := _items(kind, key):
            yield key, items[0]


def section_at(kind: type[Section], path: Path_) -> type[Section]:
    """Return the type of the section at `path` within `kind`; `Section` if there is none."""
    items: tuple[type[Section], ...] = ()
    for key in path:
        if isinstance(key, int):
            kind = items[min(key, len(items) - 1)] if items else Section
        else:
            inner, items = dict(inner_sections(kind)), _items(kind, key)
            kind = inner.get(key, items[0] if items else Section)
    return kind


def _items(kind: type[Section], key: str) -> tuple[type[Section], ...]:
    """Return the item type of the list of sections `key`, or the type of each item; () if it is none."""
    annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
    items = get_args(annotation) if get_origin(annotation) in (list, tuple) else ()
    return items if all(map(_is_section, items)) else ()


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
