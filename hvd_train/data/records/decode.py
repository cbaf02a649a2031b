"""Files of a sample as values, by their extension."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.media.audio import check_length
from hvd_train.data.media.features import resample
from hvd_train.data.media.image import ImageDecoder, Mode
from hvd_train.data.records.parse import parse_json
from hvd_train.data.records.shards import ShardSample
from hvd_train.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm")
SOUNDS = ("wav", "flac", "ogg")
TEXTS = ("txt", "text")
NUMBERS = ("cls", "index")
KNOWN = ("json", "npy", "bin", *TEXTS, *NUMBERS, *IMAGES, *SOUNDS)
PICKLES = ("pyd", "pkl", "pickle", "pt", "pth", "joblib")


@dataclass(frozen=True)
class MediaDecoder:
    """How images and sounds are decoded."""

    image: ImageDecoder
    rate: int | None
    """Samples per second that sounds are resampled to; None keeps their rate."""

    @property
    def document(self) -> dict[str, Any]:
        """How images and sounds are decoded, as JSON for `data.json`."""
        return {"image": self.image.document, "rate": self.rate}


def media_decoder(size: Sequence[int] | None, mode: Mode, rate: int | None) -> MediaDecoder:
    """Return a decoder of images in 0 to 1, of one height and width if there is a `size`."""
    return MediaDecoder(ImageDecoder(mode, (size[0], size[1]) if size else None, "crop", [0.0], [1.0]), rate)


@dataclass(frozen=True)
class ShardRecord(Mapping[str, Any]):
    """The files of a sample by extension, each decoded when it is used.

    The key `jpg;png` is the first of the two that the sample has.
    """

    sample: ShardSample
    media: MediaDecoder

    def __len__(self) -> int:
        return len(self.sample.files)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sample.files)

    def __contains__(self, key: object) -> bool:
        return any(word in self.sample.files for word in str(key).split(";"))

    def __getitem__(self, key: str) -> Any:
        extension = next(word for word in key.split(";") if word in self.sample.files)
        return decode(self.sample.read(extension), extension, f"{self.sample.place}: '{extension}'", self.media)


def decode(content: bytes, extension: str, place: str, media: MediaDecoder) -> Any:
    """Return the value in a file with `extension`.

    Images are float32 (channels, height, width), sounds float32 (channels, time), `bin` is uint8
    `(n,)`, `cls` an integer. Raise UserError, which begins with `place`, for a damaged file and for an
    extension that is not known. Nothing is unpickled.
    """
    kind = extension.rpartition(".")[2]
    if kind in IMAGES:
        return media.image.decode(io.BytesIO(content), place)
    if kind in SOUNDS:
        return _sound(content, place, media.rate)
    if kind == "bin":
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    if kind == "npy":
        return _array(content, place)
    if kind == "json":
        return parse_json(content, lambda: place)
    if kind in PICKLES:
        raise UserError(f"{place} is a pickle, which can run any code, so ddl does not read it; store npy or json")
    if kind not in KNOWN:
        raise UserError(f"{place} has an unknown extension, expected one of {', '.join(KNOWN)}")
    return _text(content, kind, place)


def _text(content: bytes, kind: str, place: str) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not text in UTF-8: {error}") from None
    if kind in TEXTS:
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{place}: found {text[:20]!r}, expected an integer") from None


def _array(content: bytes, place: str) -> Any:
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{place} is not an array of numpy: {error}") from error


def _sound(content: bytes, place: str, rate: int | None) -> Tensor:
    soundfile = import_extra("soundfile", "audio")
    check_length(place, content[:8], len(content))
    try:
        values, own = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise UserError(f"{place} is not a readable sound file: {error}") from error
    return resample(torch.from_numpy(values.T.copy()), own, rate or own)
