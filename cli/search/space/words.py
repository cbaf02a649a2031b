"""Values of YAML as text, and back."""

from __future__ import annotations

import re
from typing import Any

from hvd_train.config.document import Document

_PLAIN = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)


def override(field: str, value: Any) -> str:
    """Return the override `field=value`, from which `Document.override` reads exactly `value`."""
    return f"{field}={write(value)}"


def read(text: str) -> Any:
    """Return the value of the YAML `text`; UserError if it is no YAML."""
    document = Document({}, "")
    document.override(f"value={text}")
    return document.values["value"]


def write(value: Any) -> str:
    """Return `value` as YAML in one line."""
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write(k)}: {write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(write, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _is_plain(text: str) -> bool:
    """Return True if YAML reads `text` as a text without quotes, unlike yes and 1e-05."""
    return _PLAIN.fullmatch(text) is not None and read(text) == text


def _quoted(text: str) -> str:
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(letter: str) -> str:
    # JSON's escapes do not serve: YAML does not join two halves of a surrogate pair.
    if letter in '"\\':
        return f"\\{letter}"
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
