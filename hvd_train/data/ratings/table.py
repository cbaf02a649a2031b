"""Rows of a table of ratings as arrays: which user rated which item, how, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from hvd_train.data.files import import_extra
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.ratings.ids import Ids, fit
from hvd_train.data.tables.joined import alone, joined
from hvd_train.data.tables.table import Table, TableFile
from hvd_train.data.tables.values import NUMBER, is_number
from hvd_train.data.value_checks import Array, finite
from hvd_train.errors import UserError


@dataclass(frozen=True)
class RatingOptions:
    """Names of the columns, and which rows are held out."""

    user: str
    item: str
    rating: str
    time: str
    negatives: int
    split: Literal["random", "time", "user"]
    hold_out: HoldOut

    @property
    def columns(self) -> list[str]:
        """The columns that are read besides the user."""
        others = {self.rating: not self.negatives, self.time: self.division == "time"}
        return [self.item, *(name for name, is_read in others.items() if is_read)]

    @property
    def division(self) -> str:
        """The kind of `data.fold`, by default the one that is like `split`."""
        fold = self.hold_out.fold
        if fold is not None and fold.kind != "auto":
            return fold.kind
        return {"random": "plain", "time": "time", "user": "stratified"}[self.split]


def read(files: Sequence[TableFile], options: RatingOptions) -> Table:
    """Return the rows of all files; UserError for missing columns and values."""
    table = joined([alone(file) for file in files], options.user, options.columns)
    for name in [options.user, *options.columns]:
        missing = np.asarray(table.arrow[name].is_null(nan_is_null=True))
        if missing.any():
            more = f"; {missing.sum()} rows are like it" if missing.sum() > 1 else ""
            raise UserError(f"{table.place(name, int(missing.argmax()))}: no value, expected one in each row{more}")
    return table


def fit_ids(table: Table, name: str) -> Ids:
    """Return the ids in a column; UserError for values that are neither integers nor texts."""
    column, types = table.arrow[name], import_extra("pyarrow").types
    texts = str(column.type) in {"string", "large_string", "string_view"} or types.is_dictionary(column.type)
    if not types.is_integer(column.type) and not texts:
        raise UserError(
            f"{table.place(name, 0)}: {column[0].as_py()!r} is of type {column.type}, expected ids that are integers or texts"
        )
    return fit(column)


def ratings(table: Table, name: str) -> Array:
    """Return ratings (float32); UserError for a value that is no finite number."""
    column = table.arrow[name]
    if not is_number(column.type):
        values = column.cast("string").to_pylist()
        row = next((i for i, value in enumerate(values) if not NUMBER.fullmatch(value.strip())), 0)
        raise UserError(f"{table.place(name, row)}: '{values[row][:40]}' is no number, expected a rating")
    return finite(np.asarray(column, np.float64), table.places(name))


def times(table: Table, name: str) -> Array:
    """Return values that order the rows in time; UserError for texts."""
    column, arrow = table.arrow[name], import_extra("pyarrow")
    if arrow.types.is_temporal(column.type):
        if not arrow.types.is_timestamp(column.type):
            column = column.cast(arrow.timestamp("us"))
        column = column.cast("int64")
    if not is_number(column.type):
        raise UserError(
            f"{table.place(name, 0)}: {column[0].as_py()!r} is of type {column.type}, expected numbers or dates"
        )
    found: Array = np.asarray(column)
    return found


def last_of_each(users: Array, items: Array, when: Array) -> Array:
    """Return the rows, ascending, without those whose pair of user and item comes again later.

    Of rows with one time the last one counts.
    """
    order = np.lexsort((np.arange(len(users)), when, items, users))
    users, items = users[order], items[order]
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(users) != 0) | (np.diff(items) != 0)
    kept: Array = np.sort(order[last])
    return kept


def fold_rows(table: Table, kept: Array, users: Array, when: Array, options: RatingOptions) -> tuple[Array, Array]:
    """Return the training and the held-out rows of a fold of the rows `kept`, given their users and times.

    Raise UserError if all held-out rows would be of new users or items, which cannot be ranked.
    """
    assert options.hold_out.fold is not None
    order, kind, column = np.argsort(when, kind="stable"), options.division, options.hold_out.group or options.user
    if kind == "grouped" and options.negatives and column in {options.user, options.item}:
        raise UserError(
            f"data.fold.kind: grouped by '{column}' holds out new ones only, which a ranking (data.negatives) leaves out; "
            "take plain, stratified or time"
        )
    labels = torch.from_numpy(users[order]) if kind == "stratified" else None
    groups = table.groups(column)[kept[order]] if kind == "grouped" else None
    hold_out = replace(options.hold_out, fold=options.hold_out.fold.model_copy(update={"kind": kind}))
    train, test = hold_out.rows(len(kept), table.where, labels, groups)
    return kept[order[np.sort(train)]], kept[order[np.sort(test)]]


def held_out(users: Array, when: Array, options: RatingOptions) -> Array:
    """Return which rows are held out: the last in time, or a random part, of all or of each user."""
    held = np.zeros(len(users), bool)
    if options.split == "time":
        held[np.argsort(when, kind="stable")[len(users) - round(len(users) * options.hold_out.fraction) :]] = True
        return held
    order = np.random.default_rng(options.hold_out.seed).permutation(len(users))
    if options.split == "random":
        held[order[: round(len(users) * options.hold_out.fraction)]] = True
        return held
    order = order[np.argsort(users[order], kind="stable")]
    counts = np.bincount(users)
    within = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    quota = np.minimum(np.rint(counts * options.hold_out.fraction), np.maximum(counts - 1, 0))
    held[order] = within < np.repeat(quota, counts)
    return held
