"""Sums payloads that an all-reduce cannot add: every rank gathers, decodes and adds all."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.gradients.compression.base import BucketLayout
from hvd_train.gradients.compression.residual import Residual


class Codec(Protocol):
    """Encodes a flat float32 tensor in bytes.

    Zeros stay zeros, and a non-finite tensor does not become finite.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Return the bytes that represent `x`."""

    def add_(self, total: Tensor, payload: Tensor) -> None:
        """Decode `payload` and add it to `total`."""

    def state(self) -> dict[str, Tensor]:
        """See `Reducer.state`."""


class GatherReducer:
    """Adds the payloads of all ranks in rank order, in float32.

    Flags follow each payload, one byte each. Payloads are encoded during backward. They are also
    sent during backward if the engine runs tasks in the background.
    """

    def __init__(
        self, codec: Codec, layout: BucketLayout, comm: Communicator, residual: Residual | None = None
    ) -> None:
        self._codec, self._layout, self._comm, self._residual = codec, layout, comm, residual

    def sum_async_(self, flat: Tensor) -> Work:
        gradients, flags = self._layout.split(flat)
        x = self._residual.added_to(gradients, flags) if self._residual else gradients.float()
        payload = self._codec.encode(x)
        return self._comm.submit(lambda: self._gather(payload, x, flat))

    def state(self) -> dict[str, Tensor]:
        kept = {"residual": self._residual.kept} if self._residual else {}
        return {**self._codec.state(), **kept}

    def _gather(self, payload: Tensor, x: Tensor, flat: Tensor) -> None:
        gradients, flags = self._layout.split(flat)
        messages = self._comm.all_gather(torch.cat([payload, flags.to(torch.uint8)]))
        total = torch.zeros_like(x)
        flags.zero_()
        for message in messages:
            self._codec.add_(total, message[: -len(flags)])
            flags += message[-len(flags) :]
        # Loss scaling skips a step whose gradient is not finite: it must not change the residual.
        if self._residual and total.isfinite().all():
            self._residual.keep(gradients, self._decoded(payload, x))
        gradients.copy_(total)

    def _decoded(self, payload: Tensor, like: Tensor) -> Tensor:
        decoded = torch.zeros_like(like)
        self._codec.add_(decoded, payload)
        return decoded
