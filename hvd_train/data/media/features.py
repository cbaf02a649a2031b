"""Features of audio as pure functions of waveforms (..., time) in floats."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 10
"""Zero crossings of the resampling filter on each side of its centre."""
KAISER = 5.0
"""Shape of the window of the resampling filter."""
FLOOR = 1e-10
"""Smallest power whose logarithm is taken."""


def resample(x: Tensor, source: int, target: int) -> Tensor:
    """Return `x` at the rate `target` in place of `source`: ceil(time * target / source) samples.

    A polyphase filter: a sinc of 10 zero crossings on each side with a Kaiser window (beta 5), and
    zeros beyond both ends, as `scipy.signal.resample_poly`.
    """
    up, down = _ratio(source, target)
    if up == down:
        return x
    weights = _phases(up, down).to(x.dtype)
    reach = weights.shape[1] // 2
    windows = F.pad(x, (reach, reach)).unfold(-1, 2 * reach + 1, 1)
    result = x.new_empty(*x.shape[:-1], math.ceil(x.shape[-1] * up / down))
    for first in range(min(up, result.shape[-1])):
        start, phase = divmod(first * down, up)
        result[..., first::up] = windows[..., start::down, :] @ weights[phase]
    return result


def resampling_reach(source: int, target: int) -> int:
    """Return how many samples on each side of an instant its resampled value uses."""
    up, down = _ratio(source, target)
    return TAPS * max(up, down) // up + 1


def _ratio(source: int, target: int) -> tuple[int, int]:
    common = math.gcd(source, target)
    return target // common, source // common


@functools.lru_cache(maxsize=8)
def _phases(up: int, down: int) -> Tensor:
    """Return the filter as (up, 2 * reach + 1) float64; row r is that of phase r / up."""
    widest = max(up, down)
    half = TAPS * widest
    reach = half // up + 1
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    taps = torch.sinc(at / widest) * torch.kaiser_window(2 * half + 1, False, KAISER, dtype=torch.float64)
    taps *= up / taps.sum()
    index = torch.arange(up)[:, None] - torch.arange(-reach, reach + 1) * up
    return torch.where(index.abs() <= half, taps[(index + half).clamp(0, 2 * half)], 0.0)


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Return the mel scale of Slaney's Auditory Toolbox: linear to 1000 Hz, then logarithmic."""
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + (hertz.clamp(min=1) / 1000).log() * 27 / math.log(6.4))


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Return the inverse of `hertz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


@functools.lru_cache(maxsize=8)
def mel_filters(rate: int, transform: int, mels: int) -> Tensor:
    """Return triangular filters (mels, transform // 2 + 1) of power spectra, in float32.

    Their corners are equally spaced in mels from 0 to rate / 2, and a filter has the height 2 / its
    width in Hz (Slaney's normalisation, the default of `librosa.filters.mel`).
    """
    bins = torch.linspace(0, rate / 2, transform // 2 + 1, dtype=torch.float64)
    top = hertz_to_mel(torch.tensor(rate / 2, dtype=torch.float64))
    corners = mel_to_hertz(torch.linspace(0, float(top), mels + 2, dtype=torch.float64))
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def log_mel(x: Tensor, rate: int, mels: int, window: int, hop: int) -> Tensor:
    """Return natural logarithms of mel power spectra, (..., mels, 1 + time // hop).

    Frames have a Hann window of `window` samples, in the centre of a transform of the next power of
    two. They are centred at multiples of `hop`, with zeros beyond both ends. Powers below 1e-10
    count as 1e-10.
    """
    transform = transform_size(window)
    spectrum = torch.stft(
        x.reshape(-1, x.shape[-1]),
        transform,
        hop,
        window,
        torch.hann_window(window, dtype=x.dtype),
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    mel = mel_filters(rate, transform, mels).to(x.dtype) @ power
    return mel.clamp(min=FLOOR).log().reshape(*x.shape[:-1], *mel.shape[1:])


def transform_size(window: int) -> int:
    """Return the size of the Fourier transform for frames of `window` samples."""
    return int(2 ** math.ceil(math.log2(window)))


def mfcc(log_mels: Tensor, coefficients: int) -> Tensor:
    """Return the first mel-frequency cepstral coefficients, (..., coefficients, frames).

    They are the orthonormal DCT-II over the mels (Davis and Mermelstein, 1980).
    """
    return cosines(coefficients, log_mels.shape[-2]).to(log_mels.dtype) @ log_mels


@functools.lru_cache(maxsize=8)
def cosines(rows: int, size: int) -> Tensor:
    """Return the first `rows` rows of the orthonormal DCT-II matrix of `size`, in float64."""
    k, n = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (n + 0.5) / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
