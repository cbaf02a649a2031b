"""8 bits per element and a scale per 1024 elements: a quarter of the bytes (QSGD).

Random rounding keeps the sum unbiased. Payloads are gathered: N - 1 bytes per element, where an
all-reduce of float32 takes 8 (N - 1) / N. This pays below 8 ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hvd_train.comm.communicator import Communicator
from hvd_train.gradients.compression.base import BucketLayout
from hvd_train.gradients.compression.gather import GatherReducer

CHUNK = 1024
"""Elements with a common scale."""

LEVELS = 127


def quantize(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of `x` to int8 and a scale (Alistarh et al., arXiv 1610.02132).

    Unbiased if `noise` is uniform on [0, 1). `x` and `noise` are float32 [rows, columns]. The
    largest magnitude of a row becomes 127; the paper scales by the norm.
    """
    scales = (x.abs().amax(1, keepdim=True) / LEVELS).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / scales + noise).floor().clamp(-LEVELS, LEVELS).to(torch.int8), scales


class Noise:
    """Uniform random numbers of an own generator, whose `state` may be saved and overwritten."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self.state = self._generator.get_state()

    def like(self, x: Tensor) -> Tensor:
        self._generator.set_state(self.state)
        noise = torch.rand(x.shape, generator=self._generator, dtype=x.dtype, device=x.device)
        self.state.copy_(self._generator.get_state())
        return noise


class Quantizer:
    """A `Codec`: scales in float32, then elements in int8."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def encode(self, x: Tensor) -> Tensor:
        rows = _rows(x)
        levels, scales = quantize(rows, self._noise.like(rows))
        return torch.cat([scales.view(-1).view(torch.uint8), levels.view(-1)[: x.numel()].view(torch.uint8)])

    def add_(self, total: Tensor, payload: Tensor) -> None:
        scales, levels = payload.tensor_split([payload.numel() - total.numel()])
        rows = _rows(levels.view(torch.int8)) * scales.clone().view(torch.float32)[:, None]
        total += rows.view(-1)[: total.numel()]

    def state(self) -> dict[str, Tensor]:
        return {"noise": self._noise.state}


class Int8:
    whole = False
    per_bucket = True

    def reducer(self, layout: BucketLayout, comm: Communicator) -> GatherReducer:
        return GatherReducer(Quantizer(Noise(layout.seed, layout.device)), layout, comm)


def _rows(flat: Tensor) -> Tensor:
    return pad(flat, (0, -flat.numel() % CHUNK)).view(-1, CHUNK)


def create() -> Int8:
    return Int8()
