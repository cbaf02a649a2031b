"""Which of many texts is most similar to another one.

The similarity is the Sørensen-Dice coefficient of the sets of trigrams of characters, in lower case and
with a space at both ends: twice the trigrams in both sets over the trigrams of the one and of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hvd_train.data.value_checks import Array

SIMILARITY = "Dice coefficient of the trigrams of characters"


def trigrams(text: str) -> set[str]:
    """Return the sequences of three characters in `text`."""
    padded = f" {' '.join(text.lower().split())} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def nearest(queries: Sequence[str], texts: Sequence[str]) -> tuple[Array, Array]:
    """Return the number of the text most similar to each query, int64 `(n,)`, and the similarity in [0, 1].

    The first of equally similar texts counts. The time is that of the trigrams that both have.
    """
    found: dict[str, list[int]] = defaultdict(list)
    sizes = np.zeros(len(texts))
    for number, text in enumerate(texts):
        parts = trigrams(text)
        sizes[number] = len(parts)
        for part in parts:
            found[part].append(number)
    holders = {part: np.array(numbers) for part, numbers in found.items()}
    at, values = np.zeros(len(queries), np.int64), np.zeros(len(queries))
    for i, query in enumerate(queries):
        parts = trigrams(query)
        both = np.concatenate([np.empty(0, np.int64), *(holders[part] for part in parts if part in holders)])
        similarity = 2 * np.bincount(both, minlength=len(texts)) / np.maximum(sizes + len(parts), 1)
        at[i] = similarity.argmax()
        values[i] = similarity[at[i]]
    return at, values
