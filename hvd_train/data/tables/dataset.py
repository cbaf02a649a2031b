"""From a table to a data set.

The encoding of the columns is fitted on the training rows and applied to all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.base import Dataset, describe
from hvd_train.data.files import import_extra
from hvd_train.data.fitted import Fitted, classes_of
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.data.memory.rows import MappedRows, MappedSplit
from hvd_train.data.spec import DataSpec
from hvd_train.data.tables import values as of_columns
from hvd_train.data.tables.encoding import Category, Column, Number, column, fit_category, fit_number
from hvd_train.data.tables.joined import alone, joined
from hvd_train.data.tables.selection import choose_features, is_null, without_gaps
from hvd_train.data.tables.table import Table, TableFile, TableOptions
from hvd_train.data.tables.warnings import about_inputs, many_classes
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.value_checks import Array, finite
from hvd_train.errors import UserError


def dataset(
    train: TableFile, tests: Mapping[str, TableFile], options: TableOptions, node: Node, fitted: Fitted | None = None
) -> Dataset:
    """Return the rows of files as samples, which one rank of a host reads and all ranks share.

    The first of `tests` is the test split. Without `tests`, a random part of `train` is held out.
    `fitted` gives the columns and their encoding. Collective. Raise UserError for columns that cannot
    be used.
    """
    arrays, facts = once(node, partial(_prepared, [train, *tests.values()], options, fitted))
    shape = () if facts["task"] == "classification" else (1,)
    splits = [
        MappedSplit(
            MappedRows(arrays[f"x {i}"], np.asarray, (facts["inputs"],)),
            MappedRows(arrays[f"y {i}"], np.asarray, shape),
        )
        for i in range(max(2, 1 + len(tests)))
    ]
    spec = DataSpec((facts["inputs"],), facts["outputs"], facts["task"])
    others = dict(zip(list(tests)[1:], splits[2:], strict=True))
    return Dataset(
        splits[0],
        splits[1],
        spec,
        tuple(facts["warnings"]),
        facts["fitted"],
        others,
        facts["missing"],
        {"kind": "table", "missing": options.missing},
    )


def text_columns(fitted: Fitted) -> list[str]:
    """Return the columns whose values were texts in training: categories, and the target."""
    known = [(one["name"], one["categories"]) for one in fitted["columns"] if one["kind"] != "number"]
    known.append((fitted["target"]["name"], classes_of(fitted) or [0]))
    return [name for name, values in known if all(isinstance(value, str) for value in values)]


def _prepared(
    files: Sequence[TableFile], options: TableOptions, fitted: Fitted | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return what `_read` does, and return the memory of the tables to the system."""
    made = _read(files, options, fitted)
    import_extra("pyarrow").default_memory_pool().release_unused()
    return made


def _read(
    files: Sequence[TableFile], options: TableOptions, fitted: Fitted | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return inputs and targets of each split, and what is known of them."""
    tables = [alone(file) for file in files]
    known = [column(one) for one in fitted["columns"]] if fitted is not None else []
    names, warnings = ([one.name for one in known], []) if known else choose_features(tables[0], options)
    whole = joined(tables, options.target, names)
    table, dropped = without_gaps(whole, options.target, names, options)
    y, kinds, values = _values(table, names, options) if fitted is None else _known_values(table, known, fitted)
    parts = _rows(table, y, options)
    train, test = parts[0], np.concatenate(parts[1:])
    columns: Sequence[Column] = known or [_fit(table, n, v, train, options) for n, v in zip(names, values, strict=True)]
    encoded = [finite(c.encode(v), table.places(n)) for n, c, v in zip(names, columns, values, strict=True)]
    x = np.concatenate(encoded, axis=1)
    spec = describe(torch.from_numpy(x[:1]), y)
    target = f"{table.where}: column '{options.target}'"
    warnings += dropped
    if fitted is None:
        warnings += [
            *about_inputs(table, columns, values, train, test),
            *many_classes(y, kinds, target, options.task),
            *target_warnings(y[torch.from_numpy(train)], y[torch.from_numpy(test)], spec.outputs, target, kinds),
        ]
    document = {"columns": [c.document for c in columns], "target": {"name": options.target, "classes": kinds or None}}
    arrays = {f"x {i}": x[rows] for i, rows in enumerate(parts)}
    arrays |= {f"y {i}": y.numpy()[rows] for i, rows in enumerate(parts)}
    facts = {"inputs": x.shape[1], "outputs": spec.outputs, "task": spec.task, "warnings": warnings, "fitted": document}
    facts["missing"] = {name: float(is_null(whole.arrow[name]).mean()) for name in [options.target, *names]}
    return arrays, facts


def _values(table: Table, names: Sequence[str], options: TableOptions) -> tuple[Tensor, list[Any], list[Array]]:
    """Return the targets, the names of their classes, and the values of each column."""
    y, kinds = of_columns.targets(table, options.target, options.task)
    return y, kinds, [of_columns.inputs(table, name, options.categorical) for name in names]


def _known_values(
    table: Table, known: Sequence[Number | Category], fitted: Fitted
) -> tuple[Tensor, list[Any], list[Array]]:
    """Return what `_values` does, for columns and classes that are `fitted`."""
    y, kinds = of_columns.known_targets(table, fitted["target"]["name"], classes_of(fitted))
    return y, kinds, [of_columns.known_inputs(table, one) for one in known]


def _rows(table: Table, y: Tensor, options: TableOptions) -> list[Array]:
    """Return the rows of each split: those of each file, or the training and the held-out rows of one."""
    if len(table.files) > 1:
        return np.split(np.arange(len(table.rows)), np.searchsorted(table.rows, table.starts[1:]))
    hold_out = options.hold_out
    groups = None if hold_out.group is None else table.groups(hold_out.group)
    labels = y if y.dtype == torch.int64 else None
    return [part.numpy() for part in hold_out.rows(len(table.rows), table.where, labels, groups)]


def _fit(table: Table, name: str, values: Array, train: Array, options: TableOptions) -> Column:
    """Return the encoding of a column, fitted on its training rows."""
    known = values[train]
    if values.dtype == object:
        assert options.categorical != "error"
        return fit_category(name, known, options.categorical)
    if np.isnan(known).all():
        raise UserError(f"{table.where}: column '{name}' has no value in any training row; leave it out")
    fill = options.missing == "mean"
    return fit_number(name, known, standardise=options.standardise, fill=fill)
