"""Make the data set that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.utils.data import default_collate

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.schema import DataSection
from hvd_train.config.section import TARGET, PluginSection
from hvd_train.data.base import Dataset, Items, Stream
from hvd_train.data.collates import pad
from hvd_train.data.fitted import Fitted, described_as
from hvd_train.data.folded import check_positions, folded, without_tests
from hvd_train.data.lengths import with_lengths
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.samples import Collate, RowItems, SampleSplit, StreamSplit, TransformedSplit
from hvd_train.data.torch_datasets import as_dataset
from hvd_train.data.transform import Transform, TransformContext
from hvd_train.errors import UserError

PAD = "pad"
"""The collate function of samples of unequal length."""


def load(section: DataSection, seed: int = 0, node: Node = ALONE, fitted: Fitted | None = None) -> Dataset:
    """Return the data set of `section`, whose samples are splits or a stream.

    `seed` is the one of transforms. `fitted` encodes the samples as those of another file were
    encoded in training: it is the content of `data.json` of a run folder. Collective for the ranks of
    `node`. Raise UserError for data that is missing or malformed, or does not fit `fitted`.
    """
    made = read_source(section, node, fitted, section.fold, stacked=section.collate.member == "stack")
    context = TransformContext(made.spec, seed, section.label_key, made.preprocessing)
    transforms = [one.create(context, expected=Transform) for one in section.transforms]
    split = partial(_split, section=section, collate=collate_of(section, made.pad), seed=seed)
    held_out = [transform for transform in transforms if transform.everywhere]
    others = {name: split(part, transforms=held_out) for name, part in made.others.items()}
    train, test = split(made.train, transforms=transforms), split(made.test, transforms=held_out)
    data = replace(made, train=train, test=test, others=others)
    return data if section.bucket is None else with_lengths(data, node, seed)


def collate_of(section: DataSection, padding: Mapping[str, Any]) -> Collate:
    """Return the collate function of `section`.

    If the source has `padding`, options of `pad`, these are its defaults, and `pad` is the default.
    """
    chosen = section.collate
    written = chosen.model_fields_set if "collate" in section.model_fields_set else set()
    if padding and (not written or chosen.member == PAD):
        options = {name: value for name, value in chosen.options.items() if name in written}
        return pad.create(section.label_key, **{**padding, **options})
    made: Collate = chosen.create(section.label_key)
    return made


def read_source(
    section: PluginSection,
    node: Node,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    stacked: bool = True,
) -> Dataset:
    """Return what the source that `section` names returns, as a `Dataset`; collective for `node`.

    A `fold` divides the training samples, and given test samples are not read. All samples of a target
    that are `stacked` have one shape. Raise UserError if the samples have no positions to divide.
    """
    where = f"{'target ' * (section.member == TARGET)}'{section.label}'"
    made = (section if fold is None else without_tests(section)).create(node, fitted, fold)
    if section.member == TARGET:
        made = as_dataset(made, where, stacked=stacked)
    assert isinstance(made, Dataset)
    if fold is not None:
        check_positions(made, where)
        made = folded(made, fold, where) if section.member == TARGET else made
    return made if fitted is None else described_as(made, fitted, section.label)


def _split(
    samples: Any, section: DataSection, collate: Collate, seed: int, transforms: Sequence[Transform] = ()
) -> Any:
    """Return `samples` with a collate function and `transforms`."""
    damage = getattr(samples, "damage", None)
    if damage is not None and section.on_error == "error":
        raise UserError(damage)
    if hasattr(samples, "seeded"):
        samples = samples.seeded(seed)
    for transform in transforms:
        samples = transform.grow(samples)
    skips, seeds = section.on_error == "skip", section.worker_type == "processes"
    if isinstance(samples, Stream):
        return StreamSplit(samples, collate, transforms, seed, skips, seeds=seeds)
    if isinstance(samples, Items):
        return SampleSplit(samples, collate, transforms, seed, skips, seeds=seeds)
    if "collate" in section.model_fields_set:
        raise UserError("data.collate: this source makes its batches itself; leave collate out")
    if any(transform.of_samples and not transform.of_rows for transform in transforms):
        rows = RowItems(samples)
        collate = default_collate if rows.lengths is None else pad.create(section.label_key)
        return SampleSplit(rows, collate, transforms, seed, seeds=seeds)
    return TransformedSplit(samples, transforms, seed) if transforms else samples
