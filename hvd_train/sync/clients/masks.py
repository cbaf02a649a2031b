"""Masks that hide a client's vector and cancel in the sum over all clients.

They are the pairwise masks of Bonawitz et al., CCS'17:

    advertise   a public key for the round
    mask        the vector plus one mask for each other client, which subtracts the same mask

A mask is derived from a key that only its two clients can compute. The sum over every client of the
round is the plain sum, and any sum over fewer clients is uniformly random for a party that does not
have the missing masks. The paper adds key shares with which a server removes the masks of clients
that drop out. Ranks of a collective job do not drop out: a client whose vector does not count masks
zeros, and a rank that dies ends the job. So no key is ever shared or revealed.

Vectors are int64 modulo 2^64, where adding a uniform mask hides a number perfectly. `encode` turns
real numbers into fixed point. Keys are X25519, derivation is HKDF-SHA256, masks are the key stream
of ChaCha20, all from pycryptodome. A client draws a new secret in every round, so no mask is used
twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from hvd_train.errors import UserError, install_remedy

try:
    from Crypto.Cipher import ChaCha20
    from Crypto.Hash import SHA256
    from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
    from Crypto.Protocol.KDF import HKDF
except ImportError as error:
    raise UserError(f"sync.secure needs pycryptodome, which is not installed; {install_remedy('privacy')}") from error

SECRET = 32
SCALE = 2.0**24
"""Fixed-point units in 1.0: a float32 near one keeps all its digits."""

Keys = Mapping[int, bytes]
"""The public key of every client of a round, by its number."""


def draw() -> bytes:
    """Return a client's secret for one round, from the operating system's entropy."""
    return os.urandom(SECRET)


def advertise(secret: bytes) -> bytes:
    """Return the public key of `secret`."""
    return import_x25519_private_key(secret).public_key().export_key(format="raw")


def mask(vector: Tensor, secret: bytes, me: int, keys: Keys) -> Tensor:
    """Return `vector` plus the masks of client `me` with all other clients of `keys`."""
    masked = vector.clone()
    for other in keys:
        if other != me:
            stream = _stream(_agree(secret, keys[other]), vector.numel())
            masked += stream if me < other else -stream
    return masked


def encode(x: Tensor) -> Tensor:
    """Return `x` in fixed point, rounded to multiples of 2^-24."""
    return (x.double() * SCALE).round().to(torch.int64)


def decode(x: Tensor) -> Tensor:
    return x.double() / SCALE


def fits(x: Tensor, clients: int) -> bool:
    """Return True if the sum of `x` over `clients` cannot wrap around.

    False if an element is not finite.
    """
    return bool((x.double().abs() < limit(clients)).all())


def limit(clients: int) -> float:
    """Return the absolute value below which a sum over `clients` numbers cannot wrap around."""
    return 2.0**62 / SCALE / clients


def _agree(secret: bytes, public: bytes) -> bytes:
    """Return the key that only the owners of `secret` and of the secret of `public` can compute."""
    private, theirs = import_x25519_private_key(secret), import_x25519_public_key(public)
    return key_agreement(static_priv=private, static_pub=theirs, kdf=_derive)


def _derive(shared: bytes) -> bytes:
    key = HKDF(shared, 32, b"", SHA256, context=b"ddl mask")
    assert isinstance(key, bytes)
    return key


def _stream(key: bytes, numel: int) -> Tensor:
    cipher = ChaCha20.new(key=key, nonce=bytes(8))
    return torch.frombuffer(bytearray(cipher.encrypt(bytes(8 * numel))), dtype=torch.int64)
