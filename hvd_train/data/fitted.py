"""What was fitted on the training samples of another file, from `data.json` of its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hvd_train.data.base import Dataset
from hvd_train.data.spec import DataSpec
from hvd_train.data.value_checks import Array, Place
from hvd_train.errors import UserError, nearest

Fitted = Mapping[str, Any]
"""The content of `data.json`. A source whose `create` takes it encodes its files by it."""


def classes_of(fitted: Fitted) -> list[Any] | None:
    """Return the names of the classes; None if they are numbers, or in a regression."""
    return (fitted.get("target") or {}).get("classes") or None


def spec_of(fitted: Fitted) -> DataSpec:
    """Return the description of the training samples."""
    further = {name: fitted[name] for name in ("agents", "policy_inputs", "vocabularies") if name in fitted}
    return DataSpec(tuple(fitted["input_shape"]), fitted["outputs"], fitted["task"], **further)


def of_sources(fitted: Fitted, count: int) -> list[Fitted]:
    """Return what was fitted for each source of a mixture; UserError if there are not `count`."""
    if len(fitted["sources"]) != count:
        raise UserError(f"data.sources: {count} sources, expected {len(fitted['sources'])} as in the run")
    common = {key: fitted[key] for key in ("task", "input_shape", "outputs")}
    inputs = fitted.get("input", {}).get("sources", [{}] * len(fitted["sources"]))
    return [{**own, **common, "input": one} for own, one in zip(fitted["sources"], inputs, strict=True)]


def numbered(values: Array, classes: Sequence[Any], place: Place) -> list[int]:
    """Return the number of the class of each value; UserError for a value that is no class of the run."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = [numbers.get(value, -1) for value in values.tolist()]
    if -1 in found:
        row = found.index(-1)
        raise UserError(
            f"{place((row,))}: '{values[row]}' is no class of the run{nearest(str(values[row]), map(str, classes))}"
        )
    return found


def described_as(made: Dataset, fitted: Fitted, where: str) -> Dataset:
    """Return `made` with the description of the training samples; UserError if it does not fit them."""
    own, spec = made.spec, spec_of(fitted)
    if (own.input_shape, own.task) != (spec.input_shape, spec.task):
        raise UserError(
            f"data: samples of shape {own.input_shape} for {own.task} in {where}, expected {spec.input_shape} for {spec.task} "
            "as in the run"
        )
    if own.task == "control":
        return made  # the outputs of the run are those of its agent
    if own.outputs > spec.outputs or (own.task != "classification" and own.outputs != spec.outputs):
        what = "classes" if own.task == "classification" else "outputs"
        raise UserError(f"data: {own.outputs} {what} in {where}, expected {spec.outputs} as in the run")
    return replace(made, spec=spec)
