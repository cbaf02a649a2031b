"""Takes the bytes of a text in UTF-8 as tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvd_train.data.value_checks import Array

VOCABULARY = 256


class Bytes:
    """A vocabulary of all bytes. No byte ends a document."""

    vocabulary: int = VOCABULARY
    end: int | None = None

    def encode(self, texts: Sequence[str]) -> list[Array]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def create() -> Bytes:
    return Bytes()
