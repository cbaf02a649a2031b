"""Tar files of samples, of which each is a group of files: `a/b.jpg` and `a/b.cls` are the sample `a/b`.

That is the format of WebDataset: the key of a sample is the path up to the first dot of the name, and
the rest of the name is the extension. Files of one sample follow one another.
"""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from hvd_train.errors import UserError

GZIP = b"\x1f\x8b"
Place = tuple[int, int]
"""The offset and the length of a file in its shard."""


@dataclass(frozen=True)
class ShardSample:
    """The files of a sample by extension: their places, or their bytes if the shard is compressed."""

    shard: str
    key: str
    files: dict[str, Place | bytes]

    @property
    def place(self) -> str:
        return f"{self.shard}: sample '{self.key}'"

    def read(self, extension: str) -> bytes:
        """Return the bytes of a file."""
        content = self.files[extension]
        if isinstance(content, bytes):
            return content
        with open(self.shard, "rb") as shard:
            shard.seek(content[0])
            return shard.read(content[1])


@dataclass(frozen=True)
class Damage:
    """Stands for samples that cannot be read."""

    message: str


def read_shard(path: str) -> Iterator[ShardSample | Damage]:
    """Yield the samples of the tar file `path`, plain or gzip, in their order.

    A plain file is read header by header, so samples that are not used cost no reading.
    """
    seen: set[str] = set()
    last = "its start"
    try:
        for key, files in groupby(_files(path), key=itemgetter(0)):
            yield _sample(path, key, [(extension, content) for _, extension, content in files], seen)
            last = f"'{key}'"
            seen.add(key)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        yield Damage(f"{path}: not a whole tar file after {last}: {error}")
        return
    if not seen:
        yield Damage(f"{path}: no samples, expected files such as 0001.jpg and 0001.cls")


def _files(path: str) -> Iterator[tuple[str, str, Place | bytes]]:
    """Yield key, extension and content of each file."""
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz" if compressed else "r:") as archive:
            for member in archive:
                folder, name = posixpath.split(member.name)
                word, _, extension = name.partition(".")
                if member.isreg() and word and extension:
                    content = _content(archive, member) if compressed else (member.offset_data, member.size)
                    yield posixpath.join(folder, word), extension.lower(), content


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _sample(path: str, key: str, files: list[tuple[str, Place | bytes]], seen: set[str]) -> ShardSample | Damage:
    sample = ShardSample(path, key, dict(files))
    if len(sample.files) < len(files):
        return Damage(f"{sample.place} has two files of one extension, expected one of each")
    if key in seen:
        return Damage(f"{sample.place} stands twice, or its files do not follow one another")
    return sample


def shuffled(samples: Iterable[Any], size: int, generator: np.random.Generator) -> Iterator[Any]:
    """Yield `samples` in an order that is random within a buffer of `size` samples."""
    buffer: list[Any] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        at = int(generator.integers(size))
        yield buffer[at]
        buffer[at] = sample
    yield from (buffer[i] for i in generator.permutation(len(buffer)))


def deal_shards(count: int, part: int, parts: int, generator: np.random.Generator) -> list[int]:
    """Return the numbers of the shards of one of `parts` parts, in a random order.

    Raise UserError if there are fewer shards than parts.
    """
    if count < parts:
        raise UserError(
            f"data.shards: found {count} for {parts} ranks, expected at least one shard for each rank; start at most {count}, "
            "or write more and smaller shards"
        )
    return [int(number) for number in generator.permutation(count)[part::parts]]
