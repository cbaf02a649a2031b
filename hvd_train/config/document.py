"""YAML text as plain values, and the line of each value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hvd_train.errors import UserError

Path_ = tuple[str | int, ...]


CORE = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
RESOLVERS = _Loader.yaml_implicit_resolvers
"""What plain text of YAML is other than a text, for a writer whose files this module reads."""


@dataclass
class Document:
    """The nested values of a file, and the place of each path of keys for messages."""

    values: dict[str, Any]
    name: str
    places: dict[Path_, str] = field(default_factory=dict)

    def place(self, path: Path_) -> str:
        """Return the place of `path` or of its nearest parent.

        A place is `file:line`, or the override on the command line.
        """
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def override(self, assignment: str) -> Path_:
        """Apply `a.b=value`, where the value is YAML, and return its path."""
        key, equals, text = assignment.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            raise UserError(
                f"command line: '{assignment}' is not an override; expected key=value, such as train.epochs=3"
            )
        at = self.values
        for depth, part in enumerate(path[:-1], 1):
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise UserError(f"command line: '{assignment}': '{'.'.join(path[:depth])}' has no fields")
        at[path[-1]] = _values(_parse(text, f"command line: '{assignment}'"), ())
        self.places[path] = f"command line: '{assignment}'"
        return path


def read(path: Path) -> Document:
    """Read the YAML file `path`.

    Raise UserError, with file and line, for invalid YAML and for duplicate keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_neighbours(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Return the document in `text`; messages call it `name`."""
    node = _parse(text, name)
    if node is None:
        raise UserError(f"{name}: empty; expected sections such as 'model:' and 'data:' (ddl init writes a starter)")
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:1: expected sections such as 'model:' and 'data:', got none")
    places = {path: f"{name}:{line}" for path, line in _lines(node, name)}
    return Document(_values(node, ()), name, places)


def _parse(text: str, name: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        return node
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None


def _lines(node: yaml.Node, name: str, path: Path_ = (), above: tuple[int, ...] = ()) -> Iterator[tuple[Path_, int]]:
    if id(node) in above:
        raise UserError(f"{name}:{node.start_mark.line + 1}: an alias that contains itself")
    if not node.tag.startswith(CORE) or "/" in node.tag[len(CORE) :]:
        raise UserError(f"{name}:{node.start_mark.line + 1}: the tag {node.tag} is not allowed; expected plain YAML")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{name}:{line}: expected a plain text as a key")
            if key.value in seen:
                raise UserError(f"{name}:{line}: '{key.value}' stands twice in the same section")
            seen.add(key.value)
            yield (*path, key.value), line
            yield from _lines(value, name, (*path, key.value), above)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, i), item.start_mark.line + 1
            yield from _lines(item, name, (*path, i), above)


def _values(node: yaml.Node | None, path: Path_) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _values(value, (*path, key.value)) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_values(item, (*path, i)) for i, item in enumerate(node.value)]
    return None if node is None else _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    if ":" in node.value:
        return node.value  # YAML 1.1 takes 1:00:00 for the number 3600
    loader = _Loader("")
    try:
        value = loader.construct_object(node)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        line = node.start_mark.line + 1
        raise UserError(f"line {line}: '{node.value}' cannot be read: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()
    return value if isinstance(value, bool | int | float | str | None) else str(node.value)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    known = [p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"}]
    close = difflib.get_close_matches(path.name, known, n=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""
