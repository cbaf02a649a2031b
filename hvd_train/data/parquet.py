"""Rows of a Parquet file: one column is the target, others the inputs."""

from __future__ import annotations

from typing import Any

from hvd_train.data._source import existing, extra
from hvd_train.data._table import Options, dataset
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Fraction, Literal, NonNegativeInt


def create(
    *,
    path: Annotated[str, "Parquet file"],
    target: Annotated[str, "name of the column to predict"],
    features: Annotated[list[str], "names of the columns used as inputs; all the others where empty"] = [],
    task: Annotated[
        Literal["auto", "classification", "regression"],
        "auto makes classes of texts and integers, and a regression of other numbers",
    ] = "auto",
    standardise: Annotated[bool, "bring each input to mean 0, deviation 1 over the training samples"] = False,
    categorical: Annotated[
        Literal["error", "onehot", "code"],
        "texts among the inputs: refused, one input for each text of the training rows, or one input that numbers them from 1",
    ] = "error",
    missing: Annotated[
        Literal["error", "mean", "drop"],
        "missing values: refused, the mean of the training rows (of texts: as a text in no training row), or rows without them",
    ] = "error",
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs of shape (n,): a number each column, or one for each category of a column with `categorical: onehot`.

    Classes are numbered in sorted order. A text that is in no training row has the code 0, or zeros. UserError for columns
    that are unknown, hold values that are not finite or missing, or are neither numbers nor texts. Columns that only number
    the rows are no inputs unless `features` names them.
    """
    options = Options(target, features, task, standardise, categorical, missing, test_fraction, seed)
    table = _read(path)
    return dataset(table, path, lambda row: f"row {row} (from 0)", options)


def _read(path: str) -> Any:
    file, parquet, arrow = existing(path, "path"), extra("pyarrow.parquet"), extra("pyarrow")
    try:
        return parquet.ParquetFile(file).read()
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
