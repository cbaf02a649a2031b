"""A file of variables, as Docker and dotenv read it; nothing in it is evaluated."""

from __future__ import annotations

import re
from pathlib import Path

from cli.hosts import read
from hvd_train.errors import UserError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_QUOTED = re.compile(r"""(?:'(?P<raw>[^']*)'|"(?P<escaped>(?:[^"\\]|\\.)*)")(?:\s+#.*)?""")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def load(path: Path) -> dict[str, str]:
    """The variables of `path`; UserError names the line that is none."""
    return parse(read(path, "--env-file"), str(path))


def parse(text: str, where: str) -> dict[str, str]:
    """Variables of lines such as `KEY=VALUE`, `KEY='as it is'` and `KEY="a\\nb"  # why`, the last of each name."""
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return dict(_pair(line, f"{where}:{number}") for number, line in numbered if line and not line.startswith("#"))


def _pair(line: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    value = _value(match[2]) if match else None
    if match is None or value is None:
        name = line.partition("=")[0]
        raise UserError(f"{where}: '{name}' is no variable; expected KEY=VALUE, where a quote ends on its line")
    return match[1], value


def _value(text: str) -> str | None:
    """What stands behind the equals sign; None where a quote does not end, or something follows it."""
    if not text.strip().startswith(("'", '"')):
        return re.split(r"\s#", text, maxsplit=1)[0].strip()
    match = _QUOTED.fullmatch(text.strip())
    if match is None or match["raw"] is not None:
        return match and match["raw"]
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), match["escaped"])
