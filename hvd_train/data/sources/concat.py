"""A mixture of data sources: all samples of each, or in proportions. Evaluations use all held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Field, PositiveFloat, SourceSection
from hvd_train.data.base import Dataset, Items, Stream
from hvd_train.data.fitted import Fitted, classes_of, of_sources
from hvd_train.data.load import read_source
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.mixtures import Blocks, MixedItems, MixedSplit, MixedStream, mixture_counts
from hvd_train.data.samples import RowItems
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import shortened
from hvd_train.errors import UserError


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    sources: Annotated[list[SourceSection], Field(min_length=1), "data sources, each with a name and its options"],
    weights: Annotated[
        list[PositiveFloat],
        "proportion of each source in the training samples; an epoch is the shortest in which every sample occurs, so samples "
        "of other sources occur several times; empty: every sample occurs once",
    ] = [],
) -> Dataset:
    """Return the samples of all sources; collective.

    Samples with a length stand in the order of the sources; the sampler shuffles them. Streams
    follow one another, or alternate in the proportions. Raise UserError for sources whose samples
    differ in shape, task or classes, and for streams beside sources that have a length.
    """
    if weights and len(weights) != len(sources):
        raise UserError(f"data.weights: {len(weights)} weights for {len(sources)} sources, expected one for each")
    parts = of_sources(fitted, len(sources)) if fitted is not None else [None] * len(sources)
    made = [read_source(section, node, part, fold) for section, part in zip(sources, parts, strict=True)]
    names = [f"sources[{i}] ({section.label})" for i, section in enumerate(sources)]
    spec = _common_spec(made, names)
    train = _mixture([data.train for data in made], names, weights, "training samples")
    kinds = dict.fromkeys(kind for data in made for kind in data.others)
    others = {
        kind: _mixture([data.others[kind] for data in made if kind in data.others], names, [], kind) for kind in kinds
    }
    warnings = [f"{name}: {text}" for name, data in zip(names, made, strict=True) for text in data.warnings]
    preprocessing = {"sources": [data.preprocessing for data in made]} if any(d.preprocessing for d in made) else {}
    test = _mixture([data.test for data in made], names, [], "test samples")
    inputs = {"kind": "mixture", "sources": [dict(data.input) for data in made]}
    return Dataset(train, test, spec, tuple(warnings), preprocessing, others, input=inputs)


def _common_spec(made: Sequence[Dataset], names: Sequence[str]) -> DataSpec:
    """Return the description that fits the samples of all sources."""
    first = made[0].spec
    numbered = first.task == "classification" and not any(_class_names(data) for data in made)
    outputs = max(data.spec.outputs for data in made)
    for data, name in zip(made, names, strict=True):
        spec = data.spec if not numbered else replace(data.spec, outputs=first.outputs)
        if spec != first or _class_names(data) != _class_names(made[0]):
            raise UserError(
                f"data.{name} has {_shown(data)}, expected {_shown(made[0])} as {names[0]}: samples of one mixture are alike"
            )
    return replace(first, outputs=outputs)


def _class_names(data: Dataset) -> list[Any]:
    return classes_of(data.preprocessing) or []


def _shown(data: Dataset) -> str:
    spec, classes = data.spec, _class_names(data)
    named = f" ({shortened(classes)})" if classes else ""
    return f"samples of shape {spec.input_shape} for {spec.task} with {spec.outputs} outputs{named}"


def _mixture(parts: Sequence[Any], names: Sequence[str], weights: Sequence[float], what: str) -> Any:
    streams = [isinstance(part, Stream) for part in parts]
    if all(streams):
        return MixedStream(tuple(parts), tuple(weights), "concat")
    if any(streams):
        raise UserError(
            f"data.{names[streams.index(True)]} is a stream without a length, and {names[streams.index(False)]} is not; "
            "expected streams only, or none"
        )
    for part, name in zip(parts, names, strict=True) if weights else ():
        if not len(part):
            raise UserError(f"data.{name}: no {what}, expected at least one for its weight")
    lengths = [len(part) for part in parts]
    blocks = Blocks(mixture_counts(lengths, weights), tuple(max(n, 1) for n in lengths))
    if not any(isinstance(part, Items) for part in parts):
        return MixedSplit(tuple(parts), blocks, blocks.labels(parts))
    named = zip(parts, names, strict=False)
    items: Any = tuple(part if isinstance(part, Items) else RowItems(part, name) for part, name in named)
    return MixedItems(items, blocks, blocks.labels(items), "concat")
