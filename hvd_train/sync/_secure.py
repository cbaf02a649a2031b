"""Secure aggregation over collectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.errors import UserError
from hvd_train.privacy import secure

FEWEST = 3
"""Updates in a sum: of two, each client reads the other's off the sum."""


class SecureSum:
    """Adds up the clients' vectors so that every rank learns their sum and no rank learns a single one.

    Every client of the round first tells all ranks its public key and whether its vector counts. A vector does not count where
    the client has no samples, or where a number is not finite or too large for fixed point. If fewer than `threshold` vectors
    count, every rank raises UserError before anything that depends on a vector has left a rank. Otherwise each client sends its
    vector, or zeros if it does not count, under masks that cancel in the sum over all clients (`privacy/secure.py`).

    What a rank sees: all public keys, which clients count, the sum, and, where the engine shows single contributions, each
    client's masked vector. All ranks follow the protocol and may keep everything they see; the engine delivers what was sent.
    Colluding ranks can take their own vectors out of the sum, and nothing else: they learn the sum over the other clients that
    count. If at most `threshold` - 2 of the colluding ranks count, that is a sum of two vectors or more. With the smallest
    threshold, 3, no rank alone learns another one's vector.

    Not provided for: a rank that lies about its key or about whether it counts; and two sums of the same vectors over sets of
    clients that differ by one, which a round that is run again after a crash may give.
    """

    def __init__(self, comm: Communicator, threshold: int) -> None:
        self._comm, self._threshold, self._draw = comm, threshold, secure.draw

    def __call__(self, vector: Tensor, counts: bool, clients: Sequence[int]) -> Tensor:
        me, secret = self._comm.rank, self._draw()
        counts = me in clients and counts and secure.fits(vector, len(clients))
        keys = self._keys(secret, counts, clients)
        total = secure.encode(vector.cpu()) if counts else torch.zeros(vector.numel(), dtype=torch.int64)
        if me in keys:
            total = secure.mask(total, secret, me, keys)
        self._comm.all_reduce_(total, "sum")
        return secure.decode(total)

    def _keys(self, secret: bytes, counts: bool, clients: Sequence[int]) -> secure.Keys:
        """The public keys of `clients`, told by all ranks; UserError on all of them where too few vectors count."""
        told = self._comm.all_gather(_tensor(bytes([counts]) + secure.advertise(secret)))
        counting = sum(int(told[client][0]) for client in clients)
        if counting < self._threshold:
            raise UserError(
                f"secure aggregation: {counting} of {len(clients)} clients have an update that counts, and a sum of fewer than "
                f"{self._threshold} is not taken (sync.threshold); see why the others have none: no samples, or an update "
                "that is not finite"
            )
        return {client: told[client][1:].numpy().tobytes() for client in clients}


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
