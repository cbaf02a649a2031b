"""Sound files (WAV, FLAC, OGG, MP3), in a folder for each class or by a table."""

from __future__ import annotations

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    HeldOutFraction,
    HeldOutSeed,
    LabelColumn,
    LabelTask,
    Literal,
    MediaPath,
    MediaRoot,
    PathColumn,
    PositiveFloat,
    PositiveInt,
    TableDelimiter,
    TestMedia,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.media.audio import SUFFIXES, AudioDecoder, Features, opened
from hvd_train.data.media.dataset import Division, dataset
from hvd_train.data.media.listing import Layout
from hvd_train.data.memory.node import ALONE, Node


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: MediaPath,
    test_path: TestMedia = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
    rate: Annotated[
        PositiveInt | None,
        "samples per second to which files are resampled; by default all files must have the rate of the first",
    ] = None,
    seconds: Annotated[
        PositiveFloat | None,
        "length: longer files are cut at the end, shorter ones get zeros; by default files keep their lengths, and unequal ones "
        "need data.collate: pad",
    ] = None,
    mono: Annotated[bool, "take the mean of all channels; false: all files must have the channels of the first"] = True,
    features: Annotated[
        Literal["waveform", "log_mel", "mfcc"],
        "log_mel: logarithms of mel power spectra (Slaney's filters); mfcc: cepstral coefficients of them",
    ] = "waveform",
    mels: Annotated[PositiveInt, "mel filters from 0 Hz to half the rate"] = 64,
    coefficients: Annotated[PositiveInt, "cepstral coefficients of mfcc"] = 20,
    window_ms: Annotated[PositiveFloat, "length of a frame in milliseconds"] = 25.0,
    hop_ms: Annotated[PositiveFloat, "time between two frames in milliseconds"] = 10.0,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    task: LabelTask = "auto",
    delimiter: TableDelimiter = ",",
    root: MediaRoot = None,
) -> Dataset:
    """Return float32 (channels, time), or (channels, features, frames), read when they are used.

    Classes are numbered in sorted order of their names.
    """
    wanted = Features(features, mels, coefficients, window_ms, hop_ms)

    def decoder(file: str) -> AudioDecoder:
        if fitted is not None:
            return AudioDecoder.of(fitted)
        with opened(file) as sound:
            own_rate, channels = sound.samplerate, sound.channels
        final = rate or own_rate
        wanted.check(final)
        samples = None if seconds is None else max(1, round(seconds * final))
        return AudioDecoder(final, rate is not None, samples, None if mono else channels, wanted)

    hold_out = HoldOut(test_fraction, seed, fold)
    layout = Layout(SUFFIXES, path_column, label_column, task, delimiter, root, hold_out.group)
    return dataset(path, Division(test_path, hold_out), layout, decoder, fitted)
