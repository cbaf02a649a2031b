"""A small table of ratings, whose users have tastes that can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

USERS, ITEMS = 40, 60


def write(path: Path) -> None:
    """Write 1500 different ratings, with ids that are integers and not consecutive.

    Two kinds of users like two kinds of items. They rate 1150 times an item that they like.
    """
    draw = np.random.default_rng(3)
    users, items = np.divmod(draw.permutation(USERS * ITEMS), ITEMS)
    likes = users % 2 == items % 2
    kept = draw.permutation(np.concatenate([np.flatnonzero(likes)[:1150], np.flatnonzero(~likes)[:350]]))
    users, items, rows = users[kept], items[kept], len(kept)
    ratings = np.where(users % 2 == items % 2, 4.0, 2.0) + draw.integers(0, 2, rows)
    lines = [
        f"{7 * u + 1},{10 * i},{r},{t}"
        for u, i, r, t in zip(users, items, ratings, draw.permutation(rows), strict=True)
    ]
    path.write_text("\n".join(["user,item,rating,time", *lines]) + "\n")


def data(path: Path, **options: Any) -> dict[str, Any]:
    return {"name": "ratings", "path": str(path), "batch_size": 64, **options}
