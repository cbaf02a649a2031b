"""A JSON document on its way to ranks: a word of their command line, or variables where it is too long for one.

Launchers join the words of a command line (Open MPI in a variable, horovodrun for a shell), so that several words are no
help. Each variable travels by itself.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

from hvd_train.errors import UserError

LONGEST = 100_000
"""Characters of a word or variable; Linux takes 131,071 bytes with its name, and a launcher may add some."""
MOST = 1_500_000
"""Characters of all variables; Linux takes 2 MiB with the rest of the environment and the command line."""
_ELSEWHERE = "variables:"
_NAME = "DDL_DOCUMENT_{}"


def split(text: str) -> tuple[str, dict[str, str]]:
    """A word for the command line and variables, from which `join` makes `text`, which is ASCII; UserError if it is too long."""
    if len(text) <= LONGEST:
        return text, {}
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(packed) > MOST:
        raise UserError(
            f"the configuration has {len(text) / 1e6:.1f} MB, compressed {len(packed) / 1e6:.1f} MB, and ranks can be given "
            f"{MOST / 1e6:g} MB; put long lists into a file that a target of your own reads"
        )
    pieces = [packed[at : at + LONGEST] for at in range(0, len(packed), LONGEST)]
    return f"{_ELSEWHERE}{len(pieces)}", {_NAME.format(i): piece for i, piece in enumerate(pieces)}


def join(word: str, environment: Mapping[str, str]) -> str:
    """The document of which `split` made `word` and variables."""
    if not word.startswith(_ELSEWHERE):
        return word
    names = map(_NAME.format, range(int(word.removeprefix(_ELSEWHERE))))
    return zlib.decompress(base64.b64decode("".join(environment[name] for name in names))).decode()
