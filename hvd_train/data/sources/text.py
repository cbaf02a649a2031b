"""Texts of local files as tokens. A language model predicts each token from the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Field, Fraction, PositiveInt, TokenizerSection
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.joined import Joined
from hvd_train.data.memory.mapped import MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.tokenizers.bytes import VOCABULARY
from hvd_train.data.tokenizing import saved
from hvd_train.data.tokenizing.base import Tokenizer, describe
from hvd_train.data.tokenizing.progress import Progress
from hvd_train.data.tokenizing.texts import Document, dtype_of, encoded, pieces, whole_characters
from hvd_train.data.tokenizing.windows import dataset
from hvd_train.data.value_checks import Array

TRAIN = "train"


class Range(NamedTuple):
    """The bytes of a file from `start` to `end`."""

    path: Path
    start: int
    end: int

    def pieces(self, progress: Progress, before: int) -> Iterator[str]:
        """Yield the text, which is one document, in pieces; report what is read, after `before` bytes."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for piece in pieces(file, str(self.path), self.end - self.start):
                yield piece
                progress(before + file.tell() - self.start)


Parts = Mapping[str, Sequence[Range]]
"""The texts of each split."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    paths: Annotated[list[str], Field(min_length=1), "files that are read one after another, each a document"],
    tokenizer: Annotated[
        TokenizerSection | None,
        "how text becomes tokens, by default as the pretrained model reads it, or else bytes (ddl list tokenizers)",
    ] = None,
    length: Annotated[PositiveInt, "tokens in a sample, which is the context of the model"] = 128,
    test_path: Annotated[
        str | dict[str, str] | None, "file for evaluation; or several by name, of which the first is the main one"
    ] = None,
    test_fraction: Annotated[
        Fraction, "fraction of the text, at its end, that is held out for evaluation without test_path"
    ] = 0.1,
) -> Dataset:
    """Return int64 inputs and targets of shape (n, length); collective.

    Bytes are mapped into memory. Other tokens are made once per host, and a tokenizer that learns
    does so from the training text.

    Raise UserError if the text is too short for one sample, or is not UTF-8 and not taken as bytes.
    """
    section = tokenizer or TokenizerSection()
    files = [find_file(path, "paths") for path in paths]
    parts = _parts(files, test_files(test_path), HoldOut(test_fraction, 0, fold))
    where = ", ".join(paths)
    if section.member == "bytes":
        return dataset(
            {name: _mapped(part) for name, part in parts.items()}, length, VOCABULARY, f"{where}: %d bytes", {}
        )
    arrays, facts = once(node, partial(_tokenised, section, parts, fitted))
    tokens = {name: Joined([array]) for name, array in arrays.items()}
    return dataset(tokens, length, facts["vocabulary"], f"{where}: %d tokens", {"tokenizer": facts})


def _parts(files: Sequence[Path], tests: Mapping[str, Path], hold_out: HoldOut) -> Parts:
    """Return the texts for training and for each evaluation, the main one first."""
    whole = [_whole(file) for file in files]
    if tests:
        return {TRAIN: whole, **{name: [_whole(file)] for name, file in tests.items()}}
    block = hold_out.block(sum(text.end for text in whole))
    before, _ = _divided(whole, block.start)
    _, after = _divided(whole, block.after)
    _, test = _divided(_divided(whole, block.end)[0], block.start)
    return {TRAIN: [*before, *after], "test": test}


def _whole(file: Path) -> Range:
    return Range(file, 0, file.stat().st_size)


def _divided(texts: Sequence[Range], cut: int) -> tuple[list[Range], list[Range]]:
    """Divide `texts` after `cut` bytes, or up to three earlier: before a character of UTF-8."""
    before, after = [], []
    for path, start, end in texts:
        at = min(max(cut, 0), end)
        if start < at < end:
            with open(path, "rb") as file:
                file.seek(max(at - 4, 0))
                at += whole_characters(file.read(min(at, 4))) - min(at, 4)
        before.append(Range(path, start, at))
        after.append(Range(path, at, end))
        cut -= end
    return before, after


def _mapped(ranges: Sequence[Range]) -> Joined:
    return Joined([MappedFile(r.path).array(r.start, np.dtype(np.uint8), (r.end - r.start,)) for r in ranges])


def _tokenised(
    section: TokenizerSection, parts: Parts, fitted: Fitted | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the tokens of each of `parts`, and the description of the tokenizer."""
    texts = partial(_texts, parts[TRAIN])
    if fitted is None:
        tokenizer: Tokenizer = section.create(texts, expected=Tokenizer)
    else:
        tokenizer = saved.tokenizer(fitted["tokenizer"], section)
    nothing = np.empty(0, dtype_of(tokenizer.vocabulary))
    arrays = {
        name: np.concatenate([nothing, *encoded(_documents(ranges, "text encoded"), tokenizer)])
        for name, ranges in parts.items()
    }
    return arrays, describe(section.label, tokenizer)


def _texts(ranges: Sequence[Range]) -> Iterator[str]:
    return chain.from_iterable(_documents(ranges, "text read by the tokenizer"))


def _documents(ranges: Sequence[Range], act: str) -> Iterator[Document]:
    progress, before = Progress(act, sum(text.end - text.start for text in ranges)), 0
    for text in ranges:
        yield text.pieces(progress, before)
        before += text.end - text.start
