"""The source `audio`: features against independent references, and what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import soundfile
import torch

from hvd_train.config import plugins
from hvd_train.data.base import Dataset
from hvd_train.data.media import features
from hvd_train.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(path: str = "data", **options: Any) -> Dataset:
    return plugins.create("hvd_train.data.sources", "audio", **{"path": path, "test_fraction": 0.0, **options})


def noise(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.5, 0.5, shape)


def save(path: str, values: np.ndarray, rate: int = 8000, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, rate, **options)


def two(x: np.ndarray, y: np.ndarray, rate: int = 8000, other: int = 8000) -> None:
    save("data/a/1.wav", x, rate, subtype="FLOAT")
    save("data/b/1.wav", y, other, subtype="FLOAT")


def inputs(data: Dataset) -> list[np.ndarray]:
    """The inputs, sorted by class."""
    items = [data.train.item(i) for i in range(len(data.train))]
    return [x.numpy() for x, _ in sorted(items, key=lambda item: int(item[1]))]


@pytest.mark.parametrize(
    ("before", "after"), [(44100, 16000), (16000, 44100), (8000, 16000), (48000, 16000), (1000, 999), (16000, 16000)]
)
@pytest.mark.parametrize("samples", [1, 7, 4000])
def test_resampling_equals_that_of_scipy(before: int, after: int, samples: int):
    x = noise(2, samples)
    common = math.gcd(before, after)
    expected = scipy.signal.resample_poly(x, after // common, before // common, axis=-1)
    found = features.resample(torch.from_numpy(x), before, after).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-12


def test_the_mel_scale_is_slaneys():
    hertz = torch.tensor([0.0, 60.0, 110.0, 220.0, 440.0, 1000.0, 6400.0], dtype=torch.float64)
    mel = features.hertz_to_mel(hertz)
    assert mel.tolist() == pytest.approx([0.0, 0.9, 1.65, 3.3, 6.6, 15.0, 42.0], abs=1e-12)
    assert features.mel_to_hertz(mel).tolist() == pytest.approx(hertz.tolist(), abs=1e-9)


def test_mel_filters_are_triangles_between_their_neighbours_with_an_area_of_one():
    rate, size, mels = 16000, 4096, 20
    filters = features.mel_filters(rate, size, mels).double().numpy()
    top = float(features.hertz_to_mel(torch.tensor(8000.0, dtype=torch.float64)))
    corners = features.mel_to_hertz(torch.linspace(0, top, mels + 2, dtype=torch.float64)).numpy()
    bins = np.arange(size // 2 + 1) * rate / size
    for i, row in enumerate(filters):
        expected = np.interp(bins, corners[i : i + 3], [0, 2 / (corners[i + 2] - corners[i]), 0])
        assert np.allclose(row, expected, atol=1e-8)
    assert np.allclose(filters.sum(1) * rate / size, 1, atol=0.01)


def test_log_mel_and_mfcc_equal_a_reference_of_single_frames():
    rate, mels, window, hop, samples = 8000, 20, 200, 80, 1000
    x = noise(samples)
    size = 256
    padded = np.pad(x, size // 2)
    hann = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window), (size - window) // 2)
    starts = range(0, samples + 1, hop)
    power = np.array([np.abs(np.fft.rfft(padded[s : s + size] * hann)) ** 2 for s in starts])
    expected = np.log(np.maximum(power @ features.mel_filters(rate, size, mels).double().numpy().T, 1e-10)).T
    found = features.log_mel(torch.from_numpy(x), rate, mels, window, hop)
    assert found.shape == (mels, 13)
    assert np.allclose(found.numpy(), expected, atol=1e-9)
    cepstra = scipy.fft.dct(expected, type=2, axis=0, norm="ortho")[:13]
    assert np.allclose(features.mfcc(found, 13).numpy(), cepstra, atol=1e-9)
    silence = features.log_mel(torch.zeros(2, 3, 100), rate, mels, window, hop)
    assert torch.equal(silence, torch.full((2, 3, mels, 2), math.log(1e-10)))


def test_files_of_all_formats_are_waveforms_of_one_channel():
    x = noise(800, 2).astype(np.float32)
    for number, ending in enumerate(("wav", "flac", "ogg", "mp3", "aiff")):
        save(f"data/{number}/deep/x.{ending}", x, 16000)
    data = source()
    assert data.spec.outputs == 5
    waveforms = inputs(data)
    for waveform in (waveforms[0], waveforms[1], waveforms[4]):
        assert waveform.shape == (1, 800)
        assert np.allclose(waveform[0], x.mean(1), atol=1e-4), "16 bits a channel"
    assert data.preprocessing["files"]["rate"] == 16000


def test_a_rate_resamples_and_seconds_cut_or_fill_with_zeros():
    x, y = noise(3000), noise(1000)
    two(x, y, 12000, 8000)
    long, short = inputs(source(rate=8000, seconds=0.2))
    whole, _ = inputs(source(rate=8000))
    assert (long.shape, short.shape, whole.shape) == ((1, 1600), (1, 1600), (1, 2000))
    assert np.array_equal(long, whole[:, :1600]), "though only the first part of the file is read"
    assert np.allclose(whole[0], scipy.signal.resample_poly(x, 2, 3), atol=1e-6)
    assert np.allclose(short[0, :1000], y, atol=1e-7)
    assert not short[0, 1000:].any()


def test_features_have_the_shape_of_an_image_and_unequal_lengths_stay_unequal():
    two(noise(1000, 2), noise(800, 2))
    data = source(features="mfcc", mels=20, coefficients=13, window_ms=20, hop_ms=5)
    assert [x.shape for x in inputs(data)] == [(1, 13, 26), (1, 13, 21)]
    assert source(features="log_mel", mels=20, mono=False, seconds=0.1).spec.input_shape == (2, 20, 11)


def damaged(name: str, content: bytes) -> None:
    for folder in "ab":
        Path(f"data/{folder}").mkdir(parents=True)
        Path(f"data/{folder}/{name}").write_bytes(content)


def half(name: str) -> None:
    save(name, noise(9000))
    damaged(name, Path(name).read_bytes()[: os.path.getsize(name) // 2])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no folder": (lambda: None, {}, "data.path: no folder or table 'data'"),
    "zero bytes": (lambda: damaged("x.wav", b""), {}, "x.wav: is empty, expected a sound file"),
    "text": (lambda: damaged("x.wav", b"text" * 20), {}, "x.wav: not a readable sound file: Format not recognised."),
    "no samples": (lambda: two(noise(0), noise(0)), {}, "1.wav: holds no samples"),
    "half a WAV": (lambda: half("x.wav"), {}, "x.wav: has 9022 of 18044 bytes, so it is cut off"),
    "half a FLAC": (lambda: half("x.flac"), {}, "x.flac: not a readable sound file"),
    "half an OGG": (lambda: half("x.ogg"), {}, "x.ogg: holds no samples"),
    "not finite": (lambda: two(np.full(9, np.nan), np.full(9, np.inf)), {}, "1.wav: found a value that is not finite"),
    "empty filters": (
        lambda: two(noise(900), noise(900)), {"features": "log_mel", "mels": 200},
        "data.mels: 25 of 200 filters contain none of the 129 frequencies of a window of 25 ms at 8000 Hz",
    ),
    "coefficients": (
        lambda: two(noise(900), noise(900)), {"features": "mfcc", "mels": 8}, "data.coefficients: 20 of 8 mels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence(name: str):
    prepare, options, message = REFUSED[name]
    prepare()
    with pytest.raises(UserError) as refused:
        source(**options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_rate_or_number_of_channels_is_refused_with_the_option_that_helps():
    two(noise(900), noise(900), 8000, 16000)
    with pytest.raises(
        UserError, match=r"1.wav: has (8000|16000) Hz, expected .* as the first file; data.rate resamples"
    ):
        inputs(source())
    two(noise(900, 2), noise(900))
    with pytest.raises(UserError, match=r"1.wav: has . channels, expected . as the first file; or data.mono: true"):
        inputs(source(mono=False))
