"""From data sets of the library `datasets` to a data set of ddl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hvd_train.data.base import Dataset
from hvd_train.data.files import import_extra
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.data.records.arrow_rows import ArrowRows, ArrowStream, RowDecoder, row_place
from hvd_train.data.records.fields import Fields
from hvd_train.data.records.fit import Targets, Wanted, fit_targets, labels
from hvd_train.data.records.guess import guess, input_shape
from hvd_train.data.records.sample_format import SampleFormat, Tokens, language_spec
from hvd_train.data.records.scan import Scan, scan
from hvd_train.data.records.values import Encode
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.tokenizing.base import Texts
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest


def column_fields(table: Any, inputs: str | Sequence[str] | Mapping[str, str] | None, target: str | None) -> Fields:
    """Return the columns of inputs and target; by default all columns but the target, by their names.

    Raise UserError for a column that the table does not have.
    """
    columns = list(table.features or next(iter(table)))
    if inputs is None:
        inputs = {name: name for name in columns if name != target}
        if not inputs:
            raise UserError(f"data.inputs: the only column is '{target}', the target; expected another one")
    fields = Fields(inputs, target)
    for key in (*fields.keys, *([target] if target else [])):
        if key not in columns and key.partition(".")[0] not in columns:
            raise UserError(f"data.{'target' if key == target else 'inputs'}: no column '{key}'{nearest(key, columns)}")
    return fields


def texts(table: Any, fields: Fields, rows: Array | None = None) -> Iterator[str]:
    """Yield the texts of the inputs of `rows`, by default of all."""
    table = table if rows is None else table.select(rows)
    keys = [key for key in fields.keys if key in (table.features or fields.keys)]
    for row in table.select_columns(keys):
        yield from (value for value in row.values() if isinstance(value, str))


def streamed(
    train: Any,
    held_out: Mapping[str, Any],
    decode: RowDecoder,
    classes: int | Sequence[str] | None,
    name: str,
    order: tuple[int, int],
) -> Dataset:
    """Return a data set whose training samples are a stream; `order` is its buffer and its seed."""
    first = next(iter(train), None)
    if first is None:
        raise UserError(f"{name}: no rows, expected at least one sample")
    form, place, named = decode.form, row_place(name, 0), class_names(train, decode.form.fields.target)
    form, spec = guess(decode.record(first, place), lambda: place, form.fields, form.encode, len(named) or classes)
    decode = replace(decode, form=form)
    splits = {kind: ArrowRows(table, decode, f"{name}, {kind}") for kind, table in held_out.items()}
    nothing = ArrowRows([], decode, name)
    test, others = next(iter(splits.values()), nothing), dict([*splits.items()][1:])
    return Dataset(
        ArrowStream(train, decode, *order, name), test, spec, (), _document(form, named), others, input=decode.facts
    )


def tabled(
    node: Node,
    tables: Mapping[str, Any],
    decode: RowDecoder,
    encoder: Callable[[Texts], Encode],
    task: Wanted,
    name: str,
    hold_out: HoldOut | None,
    fitted: Fitted | None = None,
) -> Dataset:
    """Return a data set of rows by position; collective.

    The first of `tables` are the training rows. Without others, `hold_out` chooses held-out rows.
    `encoder` returns what encodes texts, given the training texts.
    """
    names = [name, *(f"{name}, {kind}" for kind in [*tables][1:])]
    for table, where in zip(tables.values(), names, strict=True):
        if not len(table):
            raise UserError(f"{where}: no rows, expected at least one sample")
    arrays, facts = once(
        node, partial(_prepared, list(tables.values()), names, decode.form.fields.target, task, hold_out, fitted)
    )
    targets = Targets(*facts["targets"])
    rows = arrays["rows 0"].values if hold_out is not None else None
    of_training = partial(texts, next(iter(tables.values())), decode.form.fields, rows)
    form = replace(decode.form, encode=encoder(of_training))
    decode = replace(decode, form=_form(form, targets, facts["names"]))
    of_split = range(len(names)) if hold_out is None else (0, 0)
    splits = [
        ArrowRows(
            [*tables.values()][group],
            decode,
            names[group],
            arrays.get(f"rows {number}"),
            arrays[f"labels {number}"],
            facts["damage"][group],
        )
        for number, group in enumerate(of_split)
    ]
    others = dict(zip([*tables][2:], splits[2:], strict=True))
    document = _document(decode.form, facts["names"])
    return Dataset(
        splits[0],
        splits[1],
        _spec(splits[0], targets),
        tuple(facts["warnings"]),
        document,
        others,
        input=decode.facts,
    )


def class_names(table: Any, target: str | None) -> list[str]:
    """Return the names of the classes that the features of the target have; empty if they have none."""
    kind = (table.features or {}).get(target)
    return list(kind.names) if isinstance(kind, import_extra("datasets", "huggingface").ClassLabel) else []


def _prepared(
    tables: Sequence[Any],
    names: Sequence[str],
    target: str | None,
    task: Wanted,
    hold_out: HoldOut | None,
    fitted: Fitted | None,
) -> tuple[Mapping[str, Array], dict[str, Any]]:
    """Return the arrays and facts that the ranks of a host share."""
    scans = [_scanned(table, where, target) for table, where in zip(tables, names, strict=True)]
    named = class_names(tables[0], target)
    targets = Targets("value", "other", 0)
    if target is not None:
        for found in scans:
            if found.damage and found.damaged == len(found.targets):
                raise UserError(found.damage)
        targets = fit_targets(scans, target, task, fitted)
    if targets.kind != "class":
        named = []
    if named:
        _check_names(scans, str(target), len(named))
        targets = targets._replace(outputs=len(named))
    of_groups = [labels(found, target or "", targets) for found in scans]
    arrays: dict[str, Array] = {}
    if hold_out is not None:
        known = of_groups[0] if targets.kind == "class" else None
        groups = None if hold_out.group is None else _values(tables[0], hold_out.group, names[0])
        train, test = hold_out.rows(len(of_groups[0]), names[0], known, groups)
        arrays |= {"rows 0": train.numpy(), "rows 1": test.numpy()}
        of_groups = [of_groups[0][train], of_groups[0][test]]
    arrays |= {f"labels {number}": of.numpy() for number, of in enumerate(of_groups)}
    warnings: list[str] = []
    if targets.kind == "class" and fitted is None:
        shown = named or targets.classes
        warnings = target_warnings(of_groups[0], of_groups[1], targets.outputs, f"{names[0]}: '{target}'", shown)
    damage = [found.damage for found in scans]
    return arrays, {"targets": [*targets], "names": named, "damage": damage, "warnings": warnings}


def _values(table: Any, column: str, name: str) -> list[str]:
    """Return the values of a column as texts; UserError if the table has none of this name."""
    if column not in table.column_names:
        raise UserError(f"data.fold.group: no column '{column}' in {name}{nearest(column, table.column_names)}")
    return [str(value) for value in table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()]


def _scanned(table: Any, name: str, target: str | None) -> Scan:
    """Return what is in the column `target`; without one, as many rows without a target."""
    place = partial(row_place, name)
    if target is None:
        return Scan(place, [None] * len(table))
    column = target if target in table.column_names else target.partition(".")[0]
    values = table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    return scan(range(len(values)), lambda number, _: {column: values[number]}, place, Fields((), target))


def _check_names(scans: Sequence[Scan], key: str, names: int) -> None:
    """Raise UserError for a class that has no name, such as the -1 of samples without a target."""
    for found in scans:
        for number, value in enumerate(found.targets):
            if value is not None and not 0 <= value < names:
                raise UserError(f"{found.place(number)}: '{key}': found the class {value}, expected one below {names}")


def _form(form: SampleFormat, targets: Targets, named: Sequence[str]) -> SampleFormat:
    if form.fields.target is None and isinstance(form.fields.inputs, str) and isinstance(form.encode, Tokens):
        return replace(form, kind="next")
    return replace(form, kind=targets.kind, classes={name: number for number, name in enumerate(targets.classes)})


def _spec(train: ArrowRows, targets: Targets) -> DataSpec:
    form = train.decode.form
    if form.kind == "next" or targets.task == "language":
        return language_spec(form.encode)
    if targets.task == "other":
        return DataSpec((), targets.outputs, "other")
    place = row_place(train.name, 0)
    return DataSpec(
        input_shape(form, train.decode.record(train.table[0], place), lambda: place), targets.outputs, targets.task
    )


def _document(form: SampleFormat, named: Sequence[str]) -> dict[str, Any]:
    """Return what becomes of columns, as JSON for `data.json`; `named` are the classes of features."""
    target = {"target": {"name": form.fields.target, "classes": [*named]}} if named else {}
    return {**form.document, **target}
