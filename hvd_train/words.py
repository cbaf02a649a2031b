"""A JSON document as words of a command line, each short enough for an operating system."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

from hvd_train.errors import UserError

LONGEST = 100_000
"""Bytes of a word; Linux takes 131,071, and a launcher may add some."""
MOST = 1_500_000
"""Bytes of all words; Linux takes 2 MiB together with the environment and what a launcher adds."""
_COMPRESSED = "zlib:"


def split(text: str) -> tuple[str, ...]:
    """`text`, which is ASCII, as one word; compressed, and in several, where it is too long. UserError where even that is."""
    if len(text) <= LONGEST:
        return (text,)
    packed = _COMPRESSED + base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    if len(packed) > MOST:
        raise UserError(
            f"the configuration has {len(text) / 1e6:.1f} MB, compressed {len(packed) / 1e6:.1f} MB, and the command line of a "
            f"rank takes {MOST / 1e6:g} MB; put long lists into a file that a target of your own reads"
        )
    return tuple(packed[at : at + LONGEST] for at in range(0, len(packed), LONGEST))


def join(words: Sequence[str]) -> str:
    """The text of which `split` made `words`."""
    text = "".join(words)
    if not text.startswith(_COMPRESSED):
        return text
    return zlib.decompress(base64.b85decode(text.removeprefix(_COMPRESSED))).decode()
