"""Files of tokens, as nanoGPT or `ddl data tokenize` writes them, mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Field, Fraction, Literal, PositiveInt
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.joined import Joined
from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.tokenizing import sidecar
from hvd_train.data.tokenizing.sidecar import Sidecar
from hvd_train.data.tokenizing.windows import beyond, dataset, first_beyond
from hvd_train.errors import UserError

LOOKED_AT = 2**16
"""Tokens at the beginning of a file that show whether they are numbers of four bytes."""


class TokenFile(NamedTuple):
    """A mapped file of tokens, and what the file beside it says of them."""

    tokens: MappedArray
    sidecar: Sidecar | None


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    paths: Annotated[list[str], Field(min_length=1), "files of tokens that are read one after another"],
    length: Annotated[PositiveInt, "tokens in a sample, which is the context of the model"] = 128,
    dtype: Annotated[
        Literal["auto", "uint16", "uint32"],
        "type of the tokens; auto: what the JSON file beside them says, else uint16",
    ] = "auto",
    vocabulary: Annotated[
        PositiveInt | None, "number of different tokens, if no JSON file beside them says it; 50257 for GPT-2"
    ] = None,
    test_path: Annotated[
        str | dict[str, str] | None, "file for evaluation; or several by name, of which the first is the main one"
    ] = None,
    test_fraction: Annotated[
        Fraction, "fraction of the tokens, at their end, that is held out for evaluation without test_path"
    ] = 0.1,
) -> Dataset:
    """Return int64 inputs and targets of shape (n, length); collective.

    Raise UserError for a file that is missing, truncated or of another type, for a token that is
    not below the vocabulary, and for files of different tokenizers. Files without a JSON file beside
    them are read once to find this out, each rank of the node a part of them. `batch` checks the
    tokens of the others.
    """
    train = [_file(find_file(path, "paths"), dtype) for path in paths]
    held_out = {name: [_file(path, dtype)] for name, path in test_files(test_path).items()}
    files = [*train, *chain.from_iterable(held_out.values())]
    size = _vocabulary(files, vocabulary)
    for file in files:
        if file.sidecar is None:
            _check(file.tokens, size, node)
    parts = {name: Joined([file.tokens for file in of]) for name, of in {"train": train, **held_out}.items()}
    if not held_out:
        whole, block = parts["train"], HoldOut(test_fraction, 0, fold).block(len(parts["train"]))
        before, after = whole.divided(block.start)[0], whole.divided(block.after)[1]
        parts["train"] = Joined([*before.parts, *after.parts])
        parts["test"] = whole.divided(block.end)[0].divided(block.start)[1]
    described = next(({"tokenizer": f.sidecar.tokenizer} for f in files if f.sidecar), {})
    return dataset(parts, length, size, f"{', '.join(paths)}: %d tokens", described)


def _file(path: Path, dtype: str) -> TokenFile:
    """Map the file; raise UserError if it is truncated, or another `dtype` than the one beside it."""
    said = sidecar.read(path)
    if said and dtype not in ("auto", said.dtype):
        raise UserError(f"data.dtype: {sidecar.beside(path)} says that the tokens are {said.dtype}; leave dtype out")
    kind = np.dtype(said.dtype if said else "uint16" if dtype == "auto" else dtype)
    file = MappedFile(path)
    if said and file.size != said.tokens * kind.itemsize:
        raise UserError(
            f"{path}: {file.size} bytes, expected {said.tokens * kind.itemsize} for {said.tokens} tokens in {kind.name}, as "
            f"{sidecar.beside(path)} says"
        )
    if file.size % kind.itemsize:
        raise UserError(f"{path}: {file.size} bytes, expected a multiple of {kind.itemsize}, the size of {kind.name}")
    return TokenFile(file.array(0, kind, (file.size // kind.itemsize,)), said)


def _vocabulary(files: Sequence[TokenFile], given: int | None) -> int:
    """Return the number of different tokens; UserError if it is unknown or files contradict it."""
    known = [(file.tokens.file.path, file.sidecar) for file in files if file.sidecar]
    for path, said in known[1:]:
        if _identity(said) != _identity(known[0][1]):
            raise UserError(f"{path}: tokens of another tokenizer than {known[0][0]}; tokenize both with the same one")
    largest = max((said.vocabulary for _, said in known), default=0)
    if given is not None and given < largest:
        raise UserError(
            f"data.vocabulary: {given}, expected at least {largest}, as {sidecar.beside(Path(known[0][0]))} says"
        )
    if given is None and not known:
        missing = sidecar.beside(Path(files[0].tokens.file.path))
        raise UserError(
            f"data.vocabulary is missing: there is no {missing}; give the number of different tokens, such as "
            "50257 for GPT-2"
        )
    return given or largest


def _identity(said: Sidecar) -> Any:
    return said.tokenizer.get("sha256", said.tokenizer)


def _check(tokens: MappedArray, vocabulary: int, node: Node) -> None:
    """Raise UserError for a token that is not below `vocabulary`, and for numbers of four bytes.

    The call is collective. Each rank of the node reads its part of the file.
    """
    values, path = tokens.values, tokens.file.path
    if tokens.dtype.itemsize == 2 and len(values) > 32 and not values[1:LOOKED_AT:2].any() and values[:LOOKED_AT].any():
        raise UserError(f"{path}: every second token is 0, as in numbers of four bytes; set data.dtype: uint32")
    begin, end = (len(values) * rank // node.size for rank in (node.rank, node.rank + 1))
    found = first_beyond(values[begin:end], vocabulary)
    first = min((at for at in node.gather(None if found is None else begin + found) if at is not None), default=None)
    if first is not None:
        raise beyond(path, first, int(values[first]), vocabulary)
