"""What a configuration chooses: the fields that differ from their defaults."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from hvd_train.config.section import Section


def chosen(section: Section) -> dict[str, Any]:
    """Return values from which `resolve` makes an equal section.

    Options with the defaults of a library are left out, so that the library fills them in again.
    """
    fields = type(section).model_fields
    values = {key: getattr(section, key) for key in fields} | (section.model_extra or {})
    return {key: _plain(value) for key, value in values.items() if not _is_default(fields.get(key), value)}


def _is_default(info: FieldInfo | None, value: Any) -> bool:
    if info is None or info.is_required():
        return False
    if isinstance(value, Section):
        return info.default is not None and chosen(value) == {}
    if isinstance(value, list | tuple) and any(isinstance(one, Section) for one in value):
        return False
    return bool(value == info.get_default(call_default_factory=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return chosen(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
