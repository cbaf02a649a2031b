"""From a table of ratings to a data set: ratings to predict, or items to rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_train.data.base import Dataset
from hvd_train.data.files import import_extra
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import none_left
from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.data.ratings import ids as of_ids
from hvd_train.data.ratings.ids import UNKNOWN, Ids
from hvd_train.data.ratings.seen import Pairs, keys_of, pairs_of
from hvd_train.data.ratings.splits import PairSplit, RatingSplit, UserSplit
from hvd_train.data.ratings.table import RatingOptions, fit_ids, fold_rows, held_out, last_of_each, ratings, read, times
from hvd_train.data.spec import DataSpec
from hvd_train.data.tables.table import Table, TableFile
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

Made = tuple[dict[str, Array], dict[str, Any]]
"""Arrays, and facts as JSON."""


@dataclass(frozen=True)
class Rows:
    """Rows of the training or the held-out part; users and items are numbers of known ids."""

    users: Array
    items: Array
    ratings: Array
    """Empty where only pairs of users and items count."""


@dataclass(frozen=True)
class Read:
    """What the files have: ids of the training rows, and the rows of both parts."""

    where: str
    users: Ids
    items: Ids
    train: Rows
    test: Rows
    warnings: list[str]


def dataset(files: Sequence[TableFile], options: RatingOptions, node: Node, fitted: Fitted | None) -> Dataset:
    """Return the ratings of files, which one rank of a host reads and all ranks share.

    The second file has the held-out rows. `fitted` gives the numbers of ids. Collective. Raise
    UserError for columns that cannot be used.
    """
    make = _ranking if options.negatives else _ratings
    arrays, facts = once(node, lambda: make(_read(files, options, fitted), options))
    users, items = facts["users"], facts["items"]
    vocabularies = {"user": users + 1, "item": items + 1}
    if options.negatives:
        spec = DataSpec((), items + 1, "ranking", vocabularies=vocabularies)
        parts: tuple[Any, Any] = _pairs(arrays, items, options.negatives)
    else:
        spec = DataSpec((), 1, "regression", vocabularies=vocabularies, target_mean=facts["mean"])
        parts = _rated(arrays, 0), _rated(arrays, 1)
    return Dataset(*parts, spec, tuple(facts["warnings"]), facts["document"], input={"kind": "ratings"})


def _rated(arrays: dict[str, MappedArray], part: int) -> RatingSplit:
    return RatingSplit(arrays[f"user {part}"], arrays[f"item {part}"], arrays[f"rating {part}"])


def _pairs(arrays: dict[str, MappedArray], items: int, negatives: int) -> tuple[PairSplit, UserSplit]:
    seen = (arrays["seen starts"], arrays["seen items"])
    held = (arrays["held starts"], arrays["held items"])
    train = PairSplit(arrays["user"], arrays["item"], seen[0], arrays["keys"], items, negatives)
    return train, UserSplit(arrays["test users"], held, seen, items + 1)


def _read(files: Sequence[TableFile], options: RatingOptions, fitted: Fitted | None) -> Read:
    table, warnings = read(files, options), []
    names = (options.user, options.item)
    found = [fit_ids(table, name) for name in names]
    users, items = (ids.numbers(table.arrow[name]) for ids, name in zip(found, names, strict=True))
    when = times(table, options.time) if options.division == "time" else np.zeros(len(users))
    parts = np.searchsorted(table.starts, np.arange(len(users)), side="right") - 1
    kept = last_of_each(parts * (len(found[0]) + 1) + users, items, when)
    if len(kept) < len(users):
        warnings.append(_repeated(len(users) - len(kept), table, users, items, found, options))
    if len(files) == 1 and options.hold_out.fold is not None:
        training, testing = fold_rows(table, kept, users[kept], when[kept], options)
    else:
        held = parts[kept] == 1 if len(files) > 1 else held_out(users[kept], when[kept], options)
        training, testing = kept[~held], kept[held]
    if not len(training):
        raise none_left(options.hold_out.fraction, len(kept), table.where)
    if fitted is None:
        known = [ids.only(numbers[training]) for ids, numbers in zip(found, (users, items), strict=True)]
    else:
        known = [of_ids.saved(fitted[key]["ids"]) for key in ("user", "item")]
    users, items = map(_renumbered, (users, items), found, known, names)
    values = np.empty(0, np.float32) if options.negatives else ratings(table, options.rating)
    train, test = (
        Rows(users[which], items[which], values[which] if len(values) else values) for which in (training, testing)
    )
    import_extra("pyarrow").default_memory_pool().release_unused()
    return Read(table.where, known[0], known[1], train, test, warnings)


def _repeated(
    number: int, table: Table, users: Array, items: Array, found: Sequence[Ids], options: RatingOptions
) -> str:
    pairs = users * (len(found[1]) + 1) + items
    order = np.argsort(pairs, kind="stable")
    again = int(order[1:][np.diff(pairs[order]) == 0].min())
    which = "once" if options.negatives else "with its last rating"
    user, item = (ids.values[int(of[again]) - 1].as_py() for ids, of in zip(found, (users, items), strict=True))
    return (
        f"{table.place(options.user, again)}: user '{user}' and item '{item}' stand in an earlier row too; {number} rows "
        f"repeat a pair, and each pair counts {which}"
    )


def _renumbered(numbers: Array, found: Ids, known: Ids, name: str) -> Array:
    """Return the numbers that `known` gives to ids that `found` numbers."""
    try:
        to_known = known.numbers(found.values)
    except import_extra("pyarrow").ArrowException as error:
        raise UserError(f"column '{name}': expected ids that are integers as in training: {error}") from None
    renumbered: Array = np.concatenate([[UNKNOWN], to_known])[numbers]
    return renumbered


def _facts(found: Read, options: RatingOptions, **document: Any) -> dict[str, Any]:
    ids = {
        key: {"name": name, "ids": of.document}
        for key, name, of in (("user", options.user, found.users), ("item", options.item, found.items))
    }
    sizes = {"users": len(found.users), "items": len(found.items)}
    return {**sizes, "warnings": found.warnings, "document": {**ids, **document}}


def _ratings(found: Read, options: RatingOptions) -> Made:
    """Return arrays of ratings. Held-out users and items that training lacks have the number `UNKNOWN`."""
    unknown = (found.test.users == UNKNOWN) | (found.test.items == UNKNOWN)
    if unknown.any():
        found.warnings.append(_of_unknown(found, unknown, "they are predicted by the mean and the bias of the other"))
    arrays: dict[str, Array] = {}
    for number, rows in enumerate((found.train, found.test)):
        arrays |= {f"user {number}": _small(rows.users), f"item {number}": _small(rows.items)}
        arrays[f"rating {number}"] = rows.ratings
    mean = float(found.train.ratings.mean(dtype=np.float64))
    return arrays, {**_facts(found, options, target={"name": options.rating}), "mean": mean}


def _ranking(found: Read, options: RatingOptions) -> Made:
    """Return arrays of pairs. Held-out pairs of users or items that training lacks are left out."""
    users, items = len(found.users), len(found.items)
    seen = pairs_of(found.train.users, found.train.items, users + 1)
    everything = seen.counts == items
    if everything[1:].all():
        raise UserError(
            f"{found.where}: each user has all {items} items in training, expected items that a user has not, as negatives"
        )
    if everything.any():
        found.warnings.append(
            f"{found.where}: {everything.sum()} users have all {items} items in training and are left out there: nothing is "
            "left to rank below their items"
        )
    trained = np.repeat(~everything, seen.counts)
    held = pairs_of(*_candidates(found, seen), users + 1)
    arrays = {
        "user": _small(np.repeat(np.arange(users + 1), seen.counts)[trained]),
        "item": _small(seen.items[trained]),
        "seen starts": seen.starts,
        "seen items": _small(seen.items),
        "keys": keys_of(seen, items),
        "held starts": held.starts,
        "held items": _small(held.items),
        "test users": _small(np.flatnonzero(held.counts)),
    }
    return arrays, _facts(found, options, seen=seen.document)


def _candidates(found: Read, seen: Pairs) -> tuple[Array, Array]:
    """Return users and items of the held-out pairs that a model can rank."""
    unknown = (found.test.users == UNKNOWN) | (found.test.items == UNKNOWN)
    if unknown.any():
        found.warnings.append(_of_unknown(found, unknown, "they are left out of the evaluation"))
    items = len(found.items) + 1
    pairs = np.repeat(np.arange(len(seen.starts) - 1), seen.counts) * items + seen.items
    again = np.isin(found.test.users * items + found.test.items, pairs)
    if again.any():
        found.warnings.append(
            f"{found.where}: {again.sum()} held-out pairs are in training too; they are left out of the evaluation"
        )
    kept = ~unknown & ~again
    return found.test.users[kept], found.test.items[kept]


def _of_unknown(found: Read, unknown: Array, treatment: str) -> str:
    users, items = (int((numbers == UNKNOWN).sum()) for numbers in (found.test.users, found.test.items))
    return (
        f"{found.where}: {unknown.sum()} of {len(unknown)} held-out rows have a user ({users}) or an item ({items}) of no "
        f"training row; {treatment}"
    )


def _small(numbers: Array) -> Array:
    """Return numbers in int32 where they fit, which halves the memory."""
    return numbers.astype(np.int32) if numbers.max(initial=0) < 2**31 else numbers
