"""Tar shards of samples in the format of WebDataset, read as a stream. Each rank reads its own shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hvd_train.config.options import (
    Annotated,
    AudioRate,
    Field,
    ImageMode,
    ImageSize,
    NonNegativeInt,
    PositiveInt,
    TextLength,
    Tokenizer,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.records.decode import ShardRecord, media_decoder
from hvd_train.data.records.fields import Fields
from hvd_train.data.records.guess import guess
from hvd_train.data.records.paths import find_files
from hvd_train.data.records.sample_format import encoder
from hvd_train.data.records.shard_samples import (
    ShardDecoder,
    ShardItems,
    ShardStream,
    first_sample,
    read_items,
    survey,
    texts,
)


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    *,
    shards: Annotated[str | list[str], "tar files, plain or gzip, as names or patterns such as data-{000..099}.tar"],
    inputs: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)],
        "extension of the file that is the input, where jpg;png is the first that a sample has, and json.a the key a of "
        "a JSON file; a list: one positional argument of the model for each; a table: names of arguments and extensions",
    ],
    target: Annotated[
        str | None, "extension of the target; none: the model needs no targets, or predicts tokens"
    ] = None,
    classes: Annotated[
        PositiveInt | list[str] | None, "number of classes, or their names in order; needed where targets are integers"
    ] = None,
    tokenizer: Tokenizer = None,
    length: TextLength = 512,
    image_size: ImageSize = None,
    image_mode: ImageMode = "rgb",
    audio_rate: AudioRate = None,
    shuffle: Annotated[
        NonNegativeInt, "samples among which the next one is drawn at random; 0: samples keep the order of their shard"
    ] = 1000,
    seed: Annotated[NonNegativeInt, "seed of the order of shards and samples"] = 0,
    test_shards: Annotated[
        str | list[str] | dict[str, str] | None,
        "tar files of held-out samples; a table: names of held-out sets and their files, the first is the main one",
    ] = None,
) -> Dataset:
    """Return samples of files with the same key; collective. The key is the path up to the first dot of the name.

    Images are float32 (channels, height, width) in 0 to 1, sounds float32 (channels, time). Shards
    have a random order in each epoch. Raise UserError for missing shards and unknown classes. Nothing
    is unpickled.
    """
    files, fields = _names(shards, "shards"), Fields(inputs, target)
    _, facts = once(node, lambda: ({}, survey(files)))
    first = first_sample(files[facts["first"]])
    media = media_decoder(image_size, image_mode, audio_rate)
    encode = encoder(tokenizer, length, partial(texts, files, fields, media), fitted)
    form, spec = guess(ShardRecord(first, media), lambda: first.place, fields, encode, classes)
    decode = ShardDecoder(form, media)
    held_out = test_shards if isinstance(test_shards, dict) else {"test": test_shards} if test_shards else {}
    parts = {name: read_items(_names(part, "test_shards"), decode) for name, part in held_out.items()}
    test, others = next(iter(parts.values()), ShardItems([], decode)), dict([*parts.items()][1:])
    stream = ShardStream(tuple(files), decode, shuffle, seed, facts["damage"])
    return Dataset(stream, test, spec, preprocessing=form.document, others=others, input=decode.facts)


def _names(patterns: str | Sequence[str], option: str) -> list[str]:
    return [str(file) for file in find_files(patterns, option)]
