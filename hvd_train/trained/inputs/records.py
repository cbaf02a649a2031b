"""Records of several values by key: numbers, texts, pictures and sounds, as samples of training."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from hvd_train.data.media.image import ImageDecoder
from hvd_train.data.records.arrow_rows import RowDecoder
from hvd_train.data.records.decode import MediaDecoder, ShardRecord, media_decoder
from hvd_train.data.records.fields import Fields
from hvd_train.data.records.sample_format import SampleFormat, Tokens
from hvd_train.data.records.shards import Damage, ShardSample, read_shard
from hvd_train.data.tables.endings import LINES, suffix
from hvd_train.data.tokenizing import saved
from hvd_train.errors import UserError
from hvd_train.trained.input import NO_TARGET, Block, Form, Input, InputContext, Place, json_object, numbered
from hvd_train.trained.reading import lines, tables

NO_MEDIA = media_decoder(None, "rgb", None)
TARGET = "\0target"
"""The key of the target that stands for a missing one."""


class Records(Input):
    """Makes samples of dicts with the keys of the inputs of training, and of tar shards."""

    def __init__(self, context: InputContext) -> None:
        facts = context.facts
        self._batch, self._options = context.batch, context.section.options
        has_target = facts["target"] is not None
        self._follows = facts["predicts"] == "next"
        encode: Any = str
        if "tokenizer" in context.document:
            made = saved.tokenizer(context.document["tokenizer"], self._options.get("tokenizer"))
            encode = Tokens(made, facts["length"], context.document["tokenizer"]["name"])
        fields = Fields(facts["inputs"], TARGET if has_target else None)
        self._form = SampleFormat(fields, "value", floats=frozenset(facts["floats"]), encode=encode)
        media = facts.get("media")
        self._media = NO_MEDIA
        if media is not None:
            self._media = MediaDecoder(ImageDecoder.of({"files": media["image"]}), media["rate"])
        self._kinds: Mapping[str, str] = facts.get("columns", {})

    def encode(self, records: Sequence[Any], place: Place = numbered) -> Any:
        """Return the batch of the records; the tokens of each for a model that predicts the next one."""
        samples = [self._sample(record, place(i)) for i, record in enumerate(records)]
        return samples if self._follows else self._batch(samples)

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield records of JSON Lines, of tables, and of tar shards; stdin is JSON Lines."""
        for path in paths:
            ending = suffix(path)
            if ending == ".tar":
                yield from self._of_shard(path, keep)
            elif path == lines.STDIN or ending in LINES:
                yield from (lines.keep(block, keep) for block in lines.json_blocks([path]))
            else:
                yield from map(_as_dicts, tables.blocks([path], self._columns(), keep, self._options))

    def form(self) -> Form:
        """Return an object with the keys of the inputs; a picture or sound is `{"bytes": BASE64}`."""
        file = json_object("File", {"bytes": bytes})
        return Form(json_object("Record", {key: file if key in self._kinds else Any for key in self._form.fields.keys}))

    def _of_shard(self, path: str, keep: Sequence[str]) -> Iterator[Block]:
        if keep:
            raise UserError(
                f"--keep: samples of a shard have no column '{keep[0]}'; their keys stand beside the predictions"
            )
        found = read_shard(str(lines.find(path)))
        while part := list(islice(found, lines.ROWS)):
            whole = [_undamaged(sample) for sample in part]
            place = _places(whole)
            yield Block([ShardRecord(one, self._media) for one in whole], place, {"key": [one.key for one in whole]})

    def _columns(self) -> dict[str, str]:
        return {key.partition(".")[0]: "any" for key in self._form.fields.keys}

    def _sample(self, record: Any, place: str) -> Any:
        whole = record if isinstance(record, ShardRecord) else self._decoded(record, place)
        both = ChainMap({TARGET: NO_TARGET}, whole)  # type: ignore[arg-type]  # a record is read only
        return self._form.sample(both, lambda: place)

    def _decoded(self, record: Any, place: str) -> Mapping[str, Any]:
        if isinstance(record, str) and isinstance(self._form.fields.inputs, str):
            record = {self._form.fields.inputs: record}
        if not isinstance(record, Mapping):
            raise UserError(f"{place}: found {type(record).__name__}, expected an object with {self._expected()}")
        return RowDecoder(self._form, self._kinds, self._media).record(record, place)

    def _expected(self) -> str:
        return ", ".join(f"'{key}'" for key in self._form.fields.keys)


def _undamaged(sample: ShardSample | Damage) -> ShardSample:
    if isinstance(sample, Damage):
        raise UserError(sample.message)
    return sample


def _places(samples: Sequence[ShardSample]) -> Place:
    return lambda i: samples[i].place


def _as_dicts(block: Block) -> Block:
    rows = block.records if isinstance(block.records, list) else block.records.to_pylist()
    return Block(rows, block.place, block.beside)


def create(context: InputContext) -> Records:
    return Records(context)
