"""The items that each user has in training, and items that a user has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_train.data.ratings.packed import pack, unpack
from hvd_train.data.value_checks import Array


@dataclass(frozen=True)
class Pairs:
    """Pairs of a user and an item, sorted by user and item, each once.

    The items of user u are `items[starts[u] : starts[u + 1]]`.
    """

    starts: Array
    items: Array

    @property
    def counts(self) -> Array:
        """The number of items of each user."""
        counts: Array = np.diff(self.starts)
        return counts

    def of(self, users: Array) -> tuple[Array, Array]:
        """Return the pairs of `users` as the position in `users` and the item of each."""
        counts = self.starts[users + 1] - self.starts[users]
        rows = np.repeat(np.arange(len(users)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.items[self.starts[users][rows] + within]

    @property
    def document(self) -> dict[str, Any]:
        """The pairs as JSON: the number of items of each user, and the distances between its items."""
        steps = np.diff(self.items, prepend=0)
        first = self.starts[:-1][self.counts > 0]
        steps[first] = self.items[first]
        return {"counts": pack(self.counts), "steps": pack(steps)}


def pairs_of(users: Array, items: Array, number: int) -> Pairs:
    """Return pairs of `number` users; a pair may come more than once."""
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    new = np.ones(len(users), bool)
    new[1:] = (np.diff(users) != 0) | (np.diff(items) != 0)
    counts = np.bincount(users[new], minlength=number)
    return Pairs(np.concatenate([[0], counts.cumsum()]), items[new])


def saved(document: dict[str, Any]) -> Pairs:
    """Return the pairs that `document` describes."""
    counts, steps = unpack(document["counts"]), unpack(document["steps"])
    starts = np.concatenate([[0], counts.cumsum()])
    total = np.concatenate([[0], steps.cumsum()])
    return Pairs(starts, total[1:] - np.repeat(total[starts[:-1]], counts))


@dataclass(frozen=True)
class Unseen:
    """Draws items that a user has not, in constant time for each.

    The items of a catalogue are numbered from 1 to `items`. If s_k is the k-th item of a user, from 0,
    then s_k - 1 - k items before it are unseen. The r-th unseen item, from 0, is therefore r + 1 plus
    the number of k with s_k - 1 - k <= r, which one binary search over all users finds.
    """

    starts: Array
    """Where the keys of each user begin, with the end of the last."""
    keys: Array
    """user * items + s_k - 1 - k, ascending."""
    items: int

    def free(self, users: Array) -> Array:
        """Return the number of unseen items of each user."""
        free: Array = self.items - (self.starts[users + 1] - self.starts[users])
        return free

    def at(self, users: Array, ranks: Array) -> Array:
        """Return for each user its unseen items at `ranks` (users, n), below `free`, in ascending order."""
        wanted = users[:, None] * self.items + ranks
        before = np.searchsorted(self.keys, wanted.ravel(), side="right").reshape(wanted.shape)
        found: Array = ranks + 1 + before - self.starts[users][:, None]
        return found


def keys_of(pairs: Pairs, items: int) -> Array:
    """Return the keys of `Unseen`."""
    users = np.repeat(np.arange(len(pairs.starts) - 1), pairs.counts)
    keys: Array = users * items + pairs.items - 1 - (np.arange(len(users)) - pairs.starts[:-1][users])
    return keys


_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def draws(start: int, positions: Array, number: int) -> Array:
    """Return `number` random integers of 32 bits (uint64) for each position, from nothing but the arguments.

    They are those of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with numbers that count positions.
    """
    counters = positions.astype(np.uint64)[:, None] * np.uint64(number) + np.arange(1, number + 1, dtype=np.uint64)
    z: Array = np.uint64(start) + counters * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    shifted: Array = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
    return shifted
