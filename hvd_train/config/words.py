"""Pass a JSON document to ranks in a word of their command line, or in variables if it is long.

Launchers join the words of a command line (Open MPI in a variable, horovodrun for a shell), so
splitting a document into several words would not help. Each variable is passed separately.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

from hvd_train.errors import UserError

LONGEST = 100_000
"""Characters of a word or variable.

Linux allows 131,071 bytes with its name, and a launcher may add some.
"""
MOST = 1_500_000
"""Characters of all variables.

Linux allows 2 MiB with the rest of the environment and the command line.
"""
_IN_VARIABLES = "variables:"
_NAME = "DDL_DOCUMENT_{}"


def split(text: str) -> tuple[str, dict[str, str]]:
    """Split `text`, which is ASCII, into a word for the command line and variables.

    `join` reverses it.

    UserError if the text is too long.
    """
    if len(text) <= LONGEST:
        return text, {}
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(packed) > MOST:
        raise UserError(
            f"the configuration has {len(text) / 1e6:.1f} MB, compressed {len(packed) / 1e6:.1f} MB, but ranks accept at "
            f"most {MOST / 1e6:g} MB; put long lists into a file that your own target reads"
        )
    pieces = [packed[at : at + LONGEST] for at in range(0, len(packed), LONGEST)]
    return f"{_IN_VARIABLES}{len(pieces)}", {_NAME.format(i): piece for i, piece in enumerate(pieces)}


def join(word: str, environment: Mapping[str, str]) -> str:
    """Return the document that `split` has split into `word` and variables."""
    if not word.startswith(_IN_VARIABLES):
        return word
    names = map(_NAME.format, range(int(word.removeprefix(_IN_VARIABLES))))
    return zlib.decompress(base64.b64decode("".join(environment[name] for name in names))).decode()
