"""Rows of a CSV file with a header: one column is the target, others the inputs."""

from __future__ import annotations

from typing import Any

from hvd_train.data._source import existing, extra
from hvd_train.data._table import dataset
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Fraction, Literal, NonNegativeInt


def create(
    *,
    path: Annotated[str, "CSV file, its first row the names of the columns"],
    target: Annotated[str, "name of the column to predict"],
    features: Annotated[list[str], "names of the columns used as inputs; all the others where empty"] = [],
    task: Annotated[
        Literal["auto", "classification", "regression"],
        "auto makes classes of texts and integers, and a regression of other numbers",
    ] = "auto",
    standardise: Annotated[bool, "bring each input to mean 0, deviation 1 over the training samples"] = False,
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs of shape (columns,); classes are numbered in sorted order.

    UserError for columns that are unknown, have missing values or, among the inputs, are no numbers.
    """
    return dataset(
        _read(path),
        path,
        target=target,
        features=features,
        task=task,
        standardise=standardise,
        test_fraction=test_fraction,
        seed=seed,
    )


def _read(path: str) -> Any:
    file, csv, arrow = existing(path, "path"), extra("pyarrow.csv"), extra("pyarrow")
    try:
        return csv.read_csv(file, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except arrow.ArrowException as error:
        raise UserError(f"{path}: not a table of comma-separated values: {error}") from error
