"""Parse a file of environment variables in the format of Docker and dotenv.

Nothing in it is evaluated.
"""

from __future__ import annotations

import re
from pathlib import Path

from cli.hosts.hostfile import read
from hvd_train.errors import UserError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_QUOTED = re.compile(r"""(?:'(?P<raw>[^']*)'|"(?P<escaped>(?:[^"\\]|\\.)*)")(?:\s+#.*)?""")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def load_env_file(path: Path) -> dict[str, str]:
    """Return the variables of the file at `path`; UserError names an invalid line."""
    return parse(read(path, "--env-file"), str(path))


def parse(text: str, where: str) -> dict[str, str]:
    """Return the variables of lines such as `KEY=VALUE`, `KEY='raw'` and `KEY="a\\nb"  # comment`.

    The last line of a name wins.
    """
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return dict(_pair(line, f"{where}:{number}") for number, line in numbered if line and not line.startswith("#"))


def _pair(line: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    value = _value(match[2]) if match else None
    if match is None or value is None:
        name = line.partition("=")[0]
        raise UserError(
            f"{where}: '{name}' is not a variable; expected KEY=VALUE, with quotes that end on the same line"
        )
    return match[1], value


def _value(text: str) -> str | None:
    """Return the value of `text`; None if a quote does not end, or if text follows it."""
    if not text.strip().startswith(("'", '"')):
        return re.split(r"\s#", text, maxsplit=1)[0].strip()
    match = _QUOTED.fullmatch(text.strip())
    if match is None or match["raw"] is not None:
        return match and match["raw"]
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["escaped"])
