"""Files of pictures or sounds as inputs, decoded as in training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from hvd_train.data.nesting import shown
from hvd_train.errors import UserError
from hvd_train.trained.input import NO_TARGET, Block, Form, Input, InputContext, Place, numbered
from hvd_train.trained.reading import media

Decode = Callable[[str], Tensor]
"""Returns the input in a file; UserError, which names the file, for a damaged one."""


class MediaInput(Input):
    """Decodes files, given by their paths or as bytes, in several threads.

    `media` is the first word of their content types, such as `image`.
    """

    def __init__(self, context: InputContext, decode: Decode, media: str, suffixes: Sequence[str], remedy: str) -> None:
        self._decode, self._media, self._suffixes, self._remedy = decode, media, suffixes, remedy
        self._shape, self._batch, self._options = context.spec.input_shape, context.batch, context.section.options
        self._padded = context.section.collate.member != "stack"
        self._threads = ThreadPoolExecutor(os.cpu_count(), "decode")

    def encode(self, records: Sequence[str | bytes], place: Place = numbered) -> Any:
        """Return the batch of the files."""
        decoded = list(self._threads.map(lambda i: self._input(records[i], place(i)), range(len(records))))
        return self._batch([(x, NO_TARGET) for x in decoded])

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield paths of files; the predictions stand beside the column `file`."""
        column = self._options.get("path_column", "path")
        return media.blocks(paths, self._suffixes, column, keep, self._options)

    def form(self) -> Form:
        """Return the bytes of a file. Paths, which `encode` also takes, are not for clients of a server."""
        file = Annotated[bytes, Field(description="a file, in base64")]
        return Form(file, (f"{self._media}/*", "application/octet-stream"))

    def _input(self, record: str | bytes, place: str) -> Tensor:
        if isinstance(record, bytes):
            with tempfile.NamedTemporaryFile() as file:
                file.write(record)
                file.flush()
                return self._checked(file.name, place)
        if not isinstance(record, str):
            raise UserError(f"{place}: found {type(record).__name__}, expected the path of a file, or its bytes")
        return self._checked(record, place)

    def _checked(self, file: str, place: str) -> Tensor:
        try:
            x = self._decode(file)
        except UserError as error:
            text = str(error).replace(file, place)
            raise UserError(text) from None
        if not self._padded and tuple(x.shape) != self._shape:
            raise UserError(f"{place}: is {shown(x)}, expected {list(self._shape)} as in training; {self._remedy}")
        return x
