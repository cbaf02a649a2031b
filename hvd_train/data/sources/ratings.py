"""Ratings of items by users, to predict them or, with negatives, to rank the items for each user."""

from __future__ import annotations

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Field,
    HeldOutFraction,
    HeldOutSeed,
    Literal,
    NonNegativeInt,
)
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.ratings.dataset import dataset
from hvd_train.data.ratings.table import RatingOptions
from hvd_train.data.tables.any_file import table_file


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, "CSV, TSV, Parquet, Arrow or JSON Lines file with a row for each rating"],
    user: Annotated[str, "column with the ids of the users, integers or texts"] = "user",
    item: Annotated[str, "column with the ids of the items, integers or texts"] = "item",
    rating: Annotated[str, "column with the ratings, which are not read with negatives"] = "rating",
    time: Annotated[str, "column with numbers or dates, which is read for split: time"] = "time",
    delimiter: Annotated[
        Annotated[str, Field(min_length=1, max_length=1)] | None,
        "character between two values of CSV; by default a tabulator in .tsv files and a comma in others",
    ] = None,
    negatives: Annotated[
        NonNegativeInt,
        "0: predict the rating; otherwise each row is an item that the user likes, to be ranked above so many random items "
        "that the user has not in training",
    ] = 0,
    split: Annotated[
        Literal["random", "time", "user"],
        "rows that are held out; random: of all rows; time: the last rows in time; user: random rows of each user",
    ] = "random",
    test_path: Annotated[str | None, "file with the held-out rows"] = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return the inputs `user` and `item`, numbers (int64) of the ids of the training rows.

    0 is the number of other ids. A pair of user and item counts once, with its last rating. With
    `negatives`, held-out samples are users, and targets say which items are theirs. Raise UserError
    for missing columns and values, and for ratings that are no numbers.
    """
    options = RatingOptions(user, item, rating, time, negatives, split, HoldOut(test_fraction, seed, fold))
    given = {"path": path, "test_path": test_path}
    files = [table_file(find_file(one, name), one, delimiter) for name, one in given.items() if one is not None]
    return dataset(files, options, node, fitted)
