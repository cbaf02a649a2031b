"""Sound files (WAV, FLAC, OGG, MP3), in a folder for each class or by a table."""

from __future__ import annotations

from hvd_train.config.options import Annotated, Field, Fraction, Literal, NonNegativeInt, PositiveFloat, PositiveInt
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.media.audio import SUFFIXES, AudioDecoder, Features, opened
from hvd_train.data.media.dataset import Division, dataset
from hvd_train.data.media.listing import Layout
from hvd_train.data.memory.node import ALONE, Node


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    *,
    path: Annotated[
        str,
        "folder with a folder for each class, at any depth; or a .csv, .parquet or .jsonl file of paths and labels. Hidden "
        "files and files with other endings are skipped",
    ],
    test_path: Annotated[
        str | dict[str, str] | None,
        "folder or table of the test samples; or several by name, the first of them the main one",
    ] = None,
    test_fraction: Annotated[
        Fraction, "fraction of the samples that is held out for evaluation without test_path"
    ] = 0.2,
    seed: Annotated[NonNegativeInt, "seed that chooses the held-out samples"] = 0,
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
    path_column: Annotated[str, "column of a table with the path of a file, from the folder of the table"] = "path",
    label_column: Annotated[
        str, "column of a table with the target; texts and integers are classes, floats a regression"
    ] = "label",
    task: Annotated[Literal["auto", "classification", "regression"], "what the labels of a table are"] = "auto",
    delimiter: Annotated[str, Field(min_length=1, max_length=1), "character between two values of a .csv table"] = ",",
    root: Annotated[str | None, "folder that the paths of a table begin at; by default the folder of the table"] = None,
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

    layout = Layout(SUFFIXES, path_column, label_column, task, delimiter, root)
    return dataset(path, Division(test_path, test_fraction, seed), layout, decoder, fitted)
