"""From a sound file to a waveform or features of one rate and length."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.media.features import log_mel, mel_filters, mfcc, resample, resampling_reach, transform_size
from hvd_train.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
Kind = Literal["waveform", "log_mel", "mfcc"]
UNKNOWN_LENGTH = {0, 0xFFFFFFFF}
"""Lengths in headers of programs that write to a pipe."""


@dataclass(frozen=True)
class Features:
    """What a waveform becomes. Windows and hops are in milliseconds."""

    kind: Kind
    mels: int
    coefficients: int
    window_ms: float
    hop_ms: float

    def __call__(self, x: Tensor, rate: int) -> Tensor:
        if self.kind == "waveform":
            return x
        spectra = log_mel(x, rate, self.mels, self.window(rate), max(1, round(rate * self.hop_ms / 1000)))
        return spectra if self.kind == "log_mel" else mfcc(spectra, self.coefficients)

    def window(self, rate: int) -> int:
        """Return the samples of a frame."""
        return max(2, round(rate * self.window_ms / 1000))

    def check(self, rate: int) -> None:
        """Raise UserError for filters that contain no frequency, and for too many coefficients."""
        if self.kind == "waveform":
            return
        if self.kind == "mfcc" and self.coefficients > self.mels:
            raise UserError(f"data.coefficients: {self.coefficients} of {self.mels} mels, expected at most as many")
        size = transform_size(self.window(rate))
        empty = int((mel_filters(rate, size, self.mels).sum(1) == 0).sum())
        if empty:
            raise UserError(
                f"data.mels: {empty} of {self.mels} filters contain none of the {size // 2 + 1} frequencies of a window of "
                f"{self.window_ms:g} ms at {rate} Hz; use fewer mels or a longer window_ms"
            )


@dataclass(frozen=True)
class AudioDecoder:
    """Makes float32 tensors (channels, time), or (channels, features, frames), of sound files.

    Files of another rate than `rate` are resampled if `resamples`. `samples` cuts the end off
    longer waveforms, and adds zeros to shorter ones; None keeps their length. `channels` None
    stands for the mean of all channels.
    """

    rate: int
    resamples: bool
    samples: int | None
    channels: int | None
    features: Features

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> AudioDecoder:
        """Return the decoder that `data.json` describes. Folders of older runs resample, and mix channels."""
        own = dict(fitted["files"])
        rate, samples, channels = own.pop("rate"), own.pop("samples"), own.pop("channels")
        facts = fitted.get("input", {})
        mono = facts.get("mono", channels == 1)
        return cls(rate, facts.get("resamples", True), samples, None if mono else channels, Features(**own))

    @property
    def document(self) -> dict[str, Any]:
        return {"rate": self.rate, "samples": self.samples, "channels": self.channels or 1, **asdict(self.features)}

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": "audio", "resamples": self.resamples, "mono": self.channels is None}

    @property
    def remedy(self) -> str:
        return "data.seconds makes all files as long, and data.collate: pad keeps their lengths"

    def __call__(self, file: str) -> Tensor:
        x, rate = self._read(file)
        if not x.numel():
            raise UserError(f"{file}: holds no samples, expected at least one")
        if not torch.isfinite(x).all():
            raise UserError(f"{file}: found a value that is not finite, expected finite numbers")
        if rate != self.rate and not self.resamples:
            raise UserError(
                f"{file}: has {rate} Hz, expected {self.rate} Hz as the first file; data.rate resamples all"
            )
        if self.channels not in {None, len(x)}:
            raise UserError(
                f"{file}: has {len(x)} channels, expected {self.channels} as the first file; or data.mono: true"
            )
        x = resample(x.mean(0, keepdim=True) if self.channels is None else x, rate, self.rate)
        return self.features(x if self.samples is None else fixed(x, self.samples), self.rate)

    def _read(self, file: str) -> tuple[Tensor, int]:
        """Return as much of the waveform as is needed, (channels, time), and its rate."""
        with opened(file) as sound:
            frames = -1
            if self.samples is not None:
                reach = resampling_reach(sound.samplerate, self.rate)
                frames = math.ceil(self.samples * sound.samplerate / self.rate) + reach
            try:
                values = sound.read(frames, dtype="float32", always_2d=True)
            except import_extra("soundfile", "audio").SoundFileError as error:
                raise UserError(f"{file}: not a readable sound file: {error}") from error
            return torch.from_numpy(values).T.contiguous(), sound.samplerate


def opened(file: str) -> Any:
    """Return the open `soundfile.SoundFile`; UserError for a file that is none or is cut off."""
    soundfile = import_extra("soundfile", "audio")
    try:
        with open(file, "rb") as stream:
            check_length(file, stream.read(8), os.path.getsize(file))
        return soundfile.SoundFile(file)
    except OSError as error:
        raise UserError(f"{file}: not a readable sound file: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        reason = str(error).rpartition(": ")[2]
        raise UserError(f"{file}: not a readable sound file: {reason}") from error


def fixed(x: Tensor, samples: int) -> Tensor:
    """Return the first `samples` of a waveform, with zeros after a shorter one."""
    return torch.nn.functional.pad(x[..., :samples], (0, max(0, samples - x.shape[-1])))


def check_length(name: str, head: bytes, size: int) -> None:
    """Raise UserError for a WAV or AIFF file of `size` bytes that ends before its header says.

    `head` are its first eight bytes. libsndfile reads such a file as a shorter one.
    """
    order: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
    if not head:
        raise UserError(f"{name}: is empty, expected a sound file")
    if head[:4] in order and len(head) == 8:
        length = int.from_bytes(head[4:], order[head[:4]])
        if length not in UNKNOWN_LENGTH and size < length + 8:
            raise UserError(f"{name}: has {size} of {length + 8} bytes, so it is cut off")
