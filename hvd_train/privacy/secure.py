"""Secure aggregation: a server learns the sum of its clients' vectors, and of a single vector nothing.

The protocol of Bonawitz et al. (CCS'17) against parties that follow it but look at all they get, as functions without state:

    client  draw, advertise     two public keys
    client  share               its secrets in shares, sealed for one other client each; `threshold` of them give a secret back
    client  mask                its vector plus a mask of its own and one with every other client, which cancel in the sum
    client  reveal              to the server: its shares of the own masks of those who delivered, of the keys of the others
    server  unmask              the sum of masked vectors less the masks that are left in it

A client never reveals both shares of another one, so a vector that was delivered stays masked whoever drops out. Vectors are
int64 modulo 2^64, in which a uniform mask hides a number perfectly; `encode` puts real numbers there.

Keys are X25519, derivation is HKDF-SHA256, masks are the key stream of ChaCha20, shares are Shamir's over GF(2^128), sealed
with ChaCha20-Poly1305: all of pycryptodome. Every round draws new secrets, so no key is used twice.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hvd_train.errors import UserError

try:
    from Crypto.Cipher import ChaCha20, ChaCha20_Poly1305
    from Crypto.Hash import SHA256
    from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
    from Crypto.Protocol.KDF import HKDF
    from Crypto.Protocol.SecretSharing import Shamir
    from Crypto.PublicKey.ECC import EccKey
except ImportError as error:
    raise UserError("sync.secure needs pycryptodome: pip install 'ddl[privacy]'") from error

SECRET = 16
PUBLIC = 32
SCALE = 2.0**24
"""Of fixed point: a float32 near one keeps all of its digits."""


class Secrets(NamedTuple):
    """What a client draws for one round, 16 bytes each."""

    channel: bytes
    """Opens the shares that others send."""
    pairs: bytes
    """Makes the masks with other clients."""
    own: bytes
    """Makes the mask of its own."""


Keys = Mapping[int, bytes]
"""What every client of a round has advertised, by its number."""


def draw() -> Secrets:
    return Secrets(*(os.urandom(SECRET) for _ in Secrets._fields))


def advertise(mine: Secrets) -> bytes:
    """The public keys of `channel` and `pairs`."""
    return _public(mine.channel) + _public(mine.pairs)


def share(mine: Secrets, me: int, keys: Keys, threshold: int) -> dict[int, bytes]:
    """For each client, sealed: its share of `pairs`, then of `own`."""
    pairs = Shamir.split(threshold, len(keys), mine.pairs)
    own = Shamir.split(threshold, len(keys), mine.own)
    plain = {client: p + o for client, (_, p), (_, o) in zip(sorted(keys), pairs, own, strict=True)}
    return {client: _seal(_channel(mine, keys[client]), me, client, text) for client, text in plain.items()}


def mask(vector: Tensor, mine: Secrets, me: int, keys: Keys) -> Tensor:
    """`vector` as it may leave the client: uniform to all who do not know its masks."""
    masked = vector + _stream(mine.own, vector.numel())
    for other in keys:
        masked += _between(mine.pairs, me, other, keys, vector.numel())
    return masked


def reveal(mine: Secrets, me: int, keys: Keys, sealed: Keys, delivered: Collection[int]) -> bytes:
    """This client's shares in the order of clients: of `own` where a vector was delivered, of `pairs` where not.

    `sealed` is what each client addressed to this one; ValueError where it was tampered with.
    """
    opened = {client: _open(_channel(mine, keys[client]), client, me, sealed[client]) for client in sorted(keys)}
    return b"".join(text[SECRET:] if client in delivered else text[:SECRET] for client, text in opened.items())


def unmask(total: Tensor, keys: Keys, delivered: Collection[int], revealed: Keys, threshold: int) -> Tensor:
    """The sum of the vectors behind `total`, the sum of masked ones of the clients that `delivered`.

    `revealed` are the shares of those who still answer; UserError where they are fewer than `threshold`.
    """
    check_threshold(len(revealed), len(keys), threshold)
    plain = total.clone()
    for place, client in enumerate(sorted(keys)):
        secret = _combine(place, keys, revealed, threshold)
        if client in delivered:
            plain -= _stream(secret, total.numel())
        else:
            for other in delivered:
                plain += _between(secret, client, other, keys, total.numel())
    return plain


def check_threshold(answers: int, clients: int, threshold: int) -> None:
    if answers < threshold:
        raise UserError(
            f"secure aggregation: {answers} of {clients} clients delivered an update, and {threshold} must to unmask the sum: "
            "lower sync.threshold, or see why the others have none (no samples, or an update that is not finite)"
        )


def encode(x: Tensor) -> Tensor:
    """`x` in fixed point, rounded to multiples of 2^-24."""
    return (x.double() * SCALE).round().to(torch.int64)


def decode(x: Tensor) -> Tensor:
    return x.double() / SCALE


def fits(x: Tensor, clients: int) -> bool:
    """Whether the sum of `x` over `clients` cannot wrap around; False where something is not finite."""
    return bool((x.double().abs() < 2.0**62 / SCALE / clients).all())


def _private(secret: bytes) -> EccKey:
    return import_x25519_private_key(_derive(secret, b"ddl X25519 key"))


def _public(secret: bytes) -> bytes:
    return _private(secret).public_key().export_key(format="raw")


def _derive(secret: bytes, purpose: bytes) -> bytes:
    key = HKDF(secret, 32, b"", SHA256, context=purpose)
    assert isinstance(key, bytes)
    return key


def _agree(secret: bytes, public: bytes, purpose: bytes) -> bytes:
    """The key that only the owners of `secret` and of the secret behind `public` know."""
    theirs = import_x25519_public_key(public)
    return key_agreement(static_priv=_private(secret), static_pub=theirs, kdf=lambda z: _derive(z, purpose))


def _channel(mine: Secrets, advertised: bytes) -> bytes:
    return _agree(mine.channel, advertised[:PUBLIC], b"ddl channel")


def _between(pairs: bytes, me: int, other: int, keys: Keys, numel: int) -> Tensor:
    """What `me` adds for `other`, who adds the opposite; zero for oneself."""
    if me == other:
        return torch.zeros(numel, dtype=torch.int64)
    stream = _stream(_agree(pairs, keys[other][PUBLIC:], b"ddl pair"), numel)
    return stream if me < other else -stream


def _stream(secret: bytes, numel: int) -> Tensor:
    cipher = ChaCha20.new(key=_derive(secret, b"ddl mask"), nonce=bytes(8))
    return torch.frombuffer(bytearray(cipher.encrypt(bytes(8 * numel))), dtype=torch.int64)


def _seal(key: bytes, sender: int, receiver: int, text: bytes) -> bytes:
    sealed, tag = ChaCha20_Poly1305.new(key=key, nonce=_nonce(sender, receiver)).encrypt_and_digest(text)
    return sealed + tag


def _open(key: bytes, sender: int, receiver: int, sealed: bytes) -> bytes:
    cipher = ChaCha20_Poly1305.new(key=key, nonce=_nonce(sender, receiver))
    return cipher.decrypt_and_verify(sealed[:-16], sealed[-16:])


def _nonce(sender: int, receiver: int) -> bytes:
    """Two clients share one key for both directions."""
    return sender.to_bytes(6, "big") + receiver.to_bytes(6, "big")


def _combine(place: int, keys: Keys, revealed: Keys, threshold: int) -> bytes:
    """The secret of the client at `place` in the order of clients."""
    part = slice(place * SECRET, (place + 1) * SECRET)
    points = [(i + 1, revealed[client][part]) for i, client in enumerate(sorted(keys)) if client in revealed]
    return Shamir.combine(points[:threshold])
