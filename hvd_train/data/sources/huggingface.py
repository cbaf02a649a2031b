"""Data sets of the library `datasets`: a saved folder, Parquet, Arrow or JSON files, or a name on the hub."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    AudioRate,
    Field,
    Fraction,
    ImageMode,
    ImageSize,
    NonNegativeInt,
    PositiveInt,
    RecordTask,
    TextLength,
    Tokenizer,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted, classes_of
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.records.arrow_dataset import column_fields, streamed, tabled, texts
from hvd_train.data.records.arrow_rows import RowDecoder, undecoded
from hvd_train.data.records.decode import media_decoder
from hvd_train.data.records.hub import open_split
from hvd_train.data.records.sample_format import SampleFormat, encoder


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[
        str | list[str],
        "folder that save_to_disk wrote, folder or names or patterns of Parquet, Arrow, JSON or CSV files, or a name on the hub",
    ],
    subset: Annotated[str | None, "subset of a data set of the hub, also called its configuration"] = None,
    split: Annotated[str, "split to train on, such as train or train[:90%]"] = "train",
    test_split: Annotated[
        str | dict[str, str] | None,
        "held-out split; a table: names of held-out sets and their splits, the first is the main one",
    ] = None,
    test_fraction: Annotated[
        Fraction, "fraction of the samples that is held out for evaluation without test_split and streaming"
    ] = 0.2,
    seed: Annotated[NonNegativeInt, "seed of the held-out samples, and of the order of a stream"] = 0,
    inputs: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)] | None,
        "column that is the input, where a.b is the field b of the column a; a list: one positional argument of the model for "
        "each; a table: names of arguments of the model and their columns; none: all columns but the target, by their names",
    ] = None,
    target: Annotated[str | None, "column of the target; none: the model needs no targets, or predicts tokens"] = None,
    classes: Annotated[
        PositiveInt | list[str] | None, "streaming: number of classes, or their names in order, unless the data say it"
    ] = None,
    task: RecordTask = "auto",
    tokenizer: Tokenizer = None,
    length: TextLength = 512,
    image_size: ImageSize = None,
    image_mode: ImageMode = "rgb",
    audio_rate: AudioRate = None,
    streaming: Annotated[
        bool, "read the training split as a stream, without a download or a copy as Arrow files"
    ] = False,
    shuffle: Annotated[
        NonNegativeInt, "streaming: samples among which the next one is drawn at random; 0: samples keep their order"
    ] = 1000,
) -> Dataset:
    """Return rows as samples; collective. Images and sounds are decoded when they are used.

    Raise UserError for data that cannot be read, unknown splits and columns, and a name on the hub
    while the hub cannot be reached.
    """
    opened = partial(open_split, node, path, subset)
    train, kinds = undecoded(opened(split, streaming=streaming))
    tests = test_split if isinstance(test_split, dict) else {"test": test_split} if test_split else {}
    held_out = {name: undecoded(opened(one, streaming=False))[0] for name, one in tests.items()}
    fields = column_fields(train, inputs, target)
    decode = RowDecoder(SampleFormat(fields), kinds, media_decoder(image_size, image_mode, audio_rate))
    encode = partial(encoder, tokenizer, length, fitted=fitted)
    where = path if isinstance(path, str) else ", ".join(path)
    if streaming:
        named = classes if fitted is None else classes_of(fitted) or classes
        form = replace(decode.form, encode=encode(partial(texts, train, fields)))
        return streamed(train, held_out, replace(decode, form=form), named, where, (shuffle, seed))
    hold_out = None if held_out else HoldOut(test_fraction, seed, fold)
    return tabled(node, {"train": train, **held_out}, decode, encode, task, where, hold_out, fitted)
