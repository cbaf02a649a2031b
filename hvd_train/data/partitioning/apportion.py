"""Whole numbers in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(total: int, weights: Sequence[float], minimum: int = 0) -> list[int]:
    """Split `total` into parts proportional to `weights`, by largest remainders.

    Each part is within one of its exact value.

    A part that would be below `minimum` is `minimum`, and the other parts share the rest. `total`
    has to suffice for all minima, and `weights` must not all be zero. The result is the same on
    every machine: floats are IEEE doubles, and sums are exactly rounded.
    """
    if total == 0:
        return [0] * len(weights)
    largest = max(weights)
    scaled = [w / largest for w in weights]
    free = list(range(len(weights)))
    while True:
        rest = total - minimum * (len(weights) - len(free))
        scale = rest / math.fsum(scaled[i] for i in free)
        low = {i for i in free if scaled[i] * scale < minimum}
        if not low:
            break
        free = [i for i in free if i not in low]
    exact = {i: scaled[i] * scale for i in free}
    parts = [math.floor(exact[i]) if i in exact else minimum for i in range(len(weights))]
    by_remainder = sorted(free, key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
