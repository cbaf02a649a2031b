"""Whole numbers in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(total: int, weights: Sequence[float], minimum: int = 0) -> list[int]:
    """`total` in parts proportional to `weights`, not all zero, by largest remainders: each within one of its exact part.

    Those whose part would be below `minimum` have that, and the others share the rest; `total` is enough for all minima.
    The same on every machine: Python's floats are IEEE doubles, and sums are exactly rounded.
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
