"""Secure aggregation over collectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.sync.clients import masks

FEWEST = 3
"""The fewest updates in a sum: of two updates, each client can compute the other from the sum."""


class SecureSum:
    """Sums the clients' vectors. Every rank learns the sum, and no rank learns a single vector.

    Every client of the round first sends all ranks its public key and whether its vector counts. A
    vector does not count if the client has no samples, or if a number is not finite or too large
    for fixed point. If fewer than `threshold` vectors count, every rank raises UserError before
    anything that depends on a vector has left a rank. Otherwise each client sends its vector, or
    zeros if it does not count, under masks that cancel in the sum over all clients
    (`clients/masks.py`).

    A rank sees all public keys, which clients count, the sum, and each client's masked vector if
    the engine shows single contributions. The ranks are honest but curious: they follow the
    protocol and may keep everything they see. The engine delivers what was sent. Colluding ranks
    can subtract their own vectors from the sum, and nothing else: they learn the sum over the other
    clients that count. If at most `threshold` - 2 of the colluding ranks count, this is a sum of at
    least two vectors. With the smallest threshold, 3, no single rank learns the vector of another
    rank.

    The protocol does not protect against a rank that lies about its key or about whether it counts.
    Nor does it protect two sums of the same vectors over sets of clients that differ by one, which
    a repeated round after a crash may give.
    """

    def __init__(self, comm: Communicator, threshold: int) -> None:
        self._comm, self._threshold, self._draw = comm, threshold, masks.draw

    def __call__(self, vector: Tensor, counts: bool, clients: Sequence[int]) -> Tensor:
        me, secret = self._comm.rank, self._draw()
        counts = me in clients and counts and masks.fits(vector, len(clients))
        keys = self._keys(secret, counts, clients)
        total = masks.encode(vector.cpu()) if counts else torch.zeros(vector.numel(), dtype=torch.int64)
        if me in keys:
            total = masks.mask(total, secret, me, keys)
        self._comm.all_reduce_(total, "sum")
        return masks.decode(total)

    def _keys(self, secret: bytes, counts: bool, clients: Sequence[int]) -> masks.Keys:
        """Return the public keys of `clients`; UserError on all ranks if too few vectors count.

        Collective.
        """
        announced = self._comm.all_gather(_tensor(bytes([counts]) + masks.advertise(secret)))
        counting = sum(int(announced[client][0]) for client in clients)
        if counting < self._threshold:
            raise UserError(
                f"secure aggregation: {counting} of {len(clients)} clients have an update that counts, expected at least "
                f"{self._threshold} (sync.threshold); the other clients have no samples, or an update that is not finite"
            )
        return {client: announced[client][1:].numpy().tobytes() for client in clients}


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
