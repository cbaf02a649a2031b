"""The examples of concepts: files in a folder for each concept, or training samples of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hvd_train.data.base import Dataset
from hvd_train.data.nesting import count
from hvd_train.errors import UserError, nearest
from hvd_train.trained.input import Input

FEWEST = 6
"""The fewest examples from which a direction is learned."""


Batches = list[Any]
"""Inputs of a model, in batches."""


def of_folders(parent: Path, reads: Input, most: int) -> dict[str, Batches]:
    """Return the inputs of at most `most` files in each folder in `parent`, by the name of the folder."""
    folders = sorted(path for path in parent.iterdir() if path.is_dir())
    if not folders:
        raise UserError(f"--concepts: {parent} has no folders, expected one with examples for each concept")
    found = {}
    for folder in folders:
        files = sorted(str(path) for path in folder.iterdir() if path.is_file())
        batches = [reads.encode(block.records, block.place) for block in reads.blocks(files[:most])] if files else []
        size = sum(map(count, batches))
        if size < FEWEST:
            raise UserError(f"--concepts: {folder} has {size} examples, expected at least {FEWEST}")
        found[folder.name] = batches
    return found


def of_classes(
    words: str, numbers: Mapping[str, int], data: Dataset, read: Callable[[Any], Any], most: int
) -> dict[str, Batches]:
    """Return the inputs of at most `most` training samples of each class that `words` names, by its name."""
    found = {}
    for word in words.split(","):
        if word not in numbers:
            raise UserError(f"--concepts: no folder and no class '{word}'{nearest(word, numbers)}")
        positions = (data.train.labels == numbers[word]).nonzero()[:, 0]
        if len(positions) < FEWEST:
            raise UserError(f"--concepts: '{word}' has {len(positions)} training samples, expected at least {FEWEST}")
        found[word] = [read(data.train.batch(positions[:most]))]
    return found
