"""Secure aggregation over collectives; rank 0 is the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.privacy import secure

SERVER = 0


class SecureSum:
    """The sum of clients' vectors, of which nothing but masked ones travel.

    A client that does not deliver, because its vector does not count or has a number too large for fixed point, drops out
    after keys are shared: the others' shares take its masks out of the sum. UserError on every rank where fewer than
    `threshold` of the round's clients deliver.

    What parties see who follow the protocol: every rank the public keys, who delivered, the sum of the masked vectors and the
    sum itself; the server, which may be a client too, also the shares that are revealed to it: never both kinds of one client,
    so that it can take the masks out of the sum alone. Up to `threshold` - 1 ranks that put together all they have learn no
    more than the sum of the others; a server that lies about who delivered is not provided for.
    """

    def __init__(self, comm: Communicator, threshold: int) -> None:
        self._comm, self._threshold = comm, threshold

    def __call__(self, vector: Tensor, counts: bool, clients: Sequence[int]) -> Tensor:
        delivers = self._comm.rank in clients and counts and secure.fits(vector, len(clients))
        total = self._sum(secure.encode(vector.cpu()) if delivers else None, vector.numel(), clients)
        return secure.decode(total)

    def _sum(self, vector: Tensor | None, numel: int, clients: Sequence[int]) -> Tensor:
        me, mine = self._comm.rank, secure.draw()
        advertised = self._gather(secure.advertise(mine))
        keys = {client: advertised[client] for client in clients}
        sealed = self._swap(secure.share(mine, me, keys, self._threshold) if me in keys else {})
        total = torch.zeros(numel, dtype=torch.int64) if vector is None else secure.mask(vector, mine, me, keys)
        self._comm.all_reduce_(total, "sum")
        delivered = [rank for rank, text in enumerate(self._gather(b"" if vector is None else b"here")) if text]
        shares = {SERVER: secure.reveal(mine, me, keys, sealed, delivered)} if me in delivered else {}
        return self._unmasked(total, keys, delivered, self._swap(shares))

    def _unmasked(self, total: Tensor, keys: secure.Keys, delivered: list[int], revealed: dict[int, bytes]) -> Tensor:
        """On every rank what the server finds."""
        secure.check_threshold(len(delivered), len(keys), self._threshold)
        if self._comm.rank == SERVER:
            total = secure.unmask(total, keys, delivered, revealed, self._threshold)
        self._comm.broadcast_(total, SERVER)
        return total

    def _gather(self, text: bytes) -> list[bytes]:
        return [_text(x) for x in self._comm.all_gather(_tensor(text))]

    def _swap(self, texts: dict[int, bytes]) -> dict[int, bytes]:
        """What each rank addressed to this one, where it was something."""
        received = self._comm.all_to_all([_tensor(texts.get(rank, b"")) for rank in range(self._comm.size)])
        return {rank: _text(x) for rank, x in enumerate(received) if x.numel()}


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _text(x: Tensor) -> bytes:
    return x.numpy().tobytes()
