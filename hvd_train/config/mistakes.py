"""Mistakes in a configuration: pydantic's errors as one short text for each field."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hvd_train.config.document import Path_
from hvd_train.config.section import TARGET, PluginSection, Section
from hvd_train.config.sections import section_at
from hvd_train.errors import nearest

Mistakes = list[tuple[Path_, str]]
"""The path of a field, and what is wrong there."""


def explain(error: ValidationError, kind: type[Section], values: dict[str, Any]) -> Mistakes:
    """Return one mistake for each path.

    Pydantic reports every branch of a union; the text lists the choices instead.
    """
    by_path: dict[Path_, list[str]] = {}
    for item in error.errors():
        path, value = _written(item["loc"], values)
        by_path.setdefault(path, []).append(_field_text(item, kind, path, value))
    return [(path, _joined(texts)) for path, texts in by_path.items()]


def explain_value(error: ValidationError, value: Any) -> str:
    """Return the text for an option whose `value` is of the wrong type."""
    return _joined([_type_text(item, value) for item in error.errors()])


def _field_text(item: ErrorDetails, kind: type[Section], path: Path_, value: Any) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown(str(path[-1]), section_at(kind, path[:-1]))
    if item["type"] == "missing":
        return "is missing"
    if item["type"] in {"model_type", "model_attributes_type"}:
        return f"expected fields ({', '.join(section_at(kind, path).model_fields)}), got {value!r}"
    return _type_text(item, value)


def _unknown(key: str, section: type[Section]) -> str:
    if key == TARGET and issubclass(section, PluginSection) and section.takes_target:
        return f"'{section.selector}' and '{TARGET}' exclude each other; leave one of them out"
    return f"unknown key{nearest(key, list(section.model_fields))}"


def _type_text(item: ErrorDetails, value: Any) -> str:
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    text = item["msg"].replace("Input should be ", "").replace("Input should have ", "")
    return f"expected {text.replace('a valid integer', 'an integer').replace('a valid ', 'a ')}, got {value!r}"


def _joined(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    wanted = [t.removeprefix("expected ").partition(", got ")[0] for t in texts]
    return f"expected {' or '.join(wanted)}, got {texts[-1].partition(', got ')[2]}"


def _written(location: tuple[str | int, ...], values: Any) -> tuple[Path_, Any]:
    """Return the written part of pydantic's `location`, or the missing key, and the value there."""
    path: Path_ = ()
    for i, key in enumerate(location):
        if isinstance(values, dict) and (key in values or i == len(location) - 1):
            values = values.get(key)
        elif isinstance(values, list) and isinstance(key, int):
            values = values[key]
        else:
            break
        path = (*path, key)
    return path, values
