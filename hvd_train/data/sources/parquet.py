"""Rows of a Parquet or Arrow file. One column is the target, and others are the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Categorical,
    FeatureColumns,
    HeldOutFraction,
    HeldOutSeed,
    MissingValues,
    Standardise,
    TableTask,
    TargetColumn,
    TestRows,
)
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, import_extra, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.tables.dataset import dataset
from hvd_train.data.tables.table import TableFile, TableOptions
from hvd_train.errors import UserError

IPC_FILE = b"ARROW1"
"""The first bytes of an Arrow IPC file."""
IPC_STREAM = b"\xff\xff\xff\xff"
"""The first bytes of an Arrow IPC stream, which the library `datasets` writes."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, "Parquet file, or Arrow IPC file (Feather)"],
    target: TargetColumn,
    features: FeatureColumns = [],
    task: TableTask = "auto",
    standardise: Standardise = False,
    categorical: Categorical = "error",
    missing: MissingValues = "error",
    test_path: TestRows = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs of shape (n,), one or more for each column.

    Classes are numbered in sorted order. A text that no training row has becomes the code 0, or
    zeros. A column that only numbers the rows is no input unless `features` names it. Raise
    UserError for columns that are unknown, are neither numbers nor texts, or hold missing or
    infinite values.
    """
    hold_out = HoldOut(test_fraction, seed, fold)
    options = TableOptions(target, features, task, standardise, categorical, missing, hold_out)
    train = table(find_file(path, "path"), path)
    tests = {name: table(file, str(file)) for name, file in test_files(test_path).items()}
    return dataset(train, tests, options, node, fitted)


def table(file: Path, path: str) -> TableFile:
    """Return a Parquet or Arrow file, which messages call `path`, as a table."""
    return TableFile(path, lambda: _read(file, path), "row {} (from 0)".format)


def _read(file: Path, path: str) -> Any:
    parquet, arrow = import_extra("pyarrow.parquet"), import_extra("pyarrow")
    try:
        with open(file, "rb") as opened:
            magic = opened.read(len(IPC_FILE))
        if magic == IPC_FILE:
            return arrow.ipc.open_file(arrow.memory_map(str(file))).read_all()
        if magic.startswith(IPC_STREAM):
            return arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all()
        return parquet.ParquetFile(file, memory_map=True).read()
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
