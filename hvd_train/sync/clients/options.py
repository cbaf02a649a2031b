"""Checks of the options of federated training.

Secure aggregation is imported only if it is used: not every installation has pycryptodome.
"""

from __future__ import annotations

import math

from hvd_train.errors import UserError
from hvd_train.sync.base import Context
from hvd_train.sync.clients.merges import Sum
from hvd_train.sync.servers.aggregate import check


def check_privacy(aggregate: str, clip: float | None, noise: float, delta: float, clients: int) -> None:
    if noise and not clip:
        raise UserError("sync.noise needs sync.clip, the norm to which updates are clipped, such as clip: 1.0")
    if noise and not 1e-12 <= noise <= 1e6:
        raise UserError(f"sync.noise: expected 0, or 1e-12 to 1e6, for which an epsilon can be computed, got {noise:g}")
    if noise and aggregate != "mean":
        raise UserError(
            f"sync.noise hides a client in a sum, and '{aggregate}' takes none: choose aggregate: mean, or noise: 0"
        )
    if noise and delta >= 1 / clients:
        raise UserError(f"sync.delta: with {clients} clients expected less than {1 / clients:g}, got {delta:g}")


def check_secure(aggregate: str, secure: bool, threshold: int | None) -> None:
    if secure and aggregate != "mean":
        raise UserError(f"sync.secure: '{aggregate}' needs single updates; choose aggregate: mean or secure: false")
    if threshold and not secure:
        raise UserError("sync.threshold is an option of secure aggregation: add secure: true, or leave it out")


def check_byzantine(aggregate: str, byzantine: int, clients: int) -> None:
    if aggregate == "mean" and byzantine:
        raise UserError(
            "sync.byzantine: mean withstands no poisoned client; choose aggregate: krum, median or trimmed_mean"
        )
    if aggregate != "mean":
        check(aggregate, clients, byzantine)


def check_fixed_point(clip: float, deviation: float, ranks: int) -> None:
    """Raise UserError if masked sums cannot represent an update of norm `clip` with the noise.

    Masked numbers are multiples of 2^-24. The noise must be far above that, and a client's part of
    the sum below the limit.
    """
    from hvd_train.sync.clients import masks

    finest, largest = 16 / masks.SCALE * math.sqrt(ranks), masks.limit(ranks)
    if deviation < finest or clip + 9 * deviation >= largest:  # a number of the generator is below 9 deviations
        raise UserError(
            f"sync.clip: with secure: true, noise of deviation {deviation:g} does not fit fixed-point numbers; "
            f"expected clip * noise from about {finest:.2g} to {largest / 9:.2g}"
        )


def secure_sum(context: Context, clients: int, threshold: int | None) -> Sum:
    """Return the masked sum over rounds of `clients` clients."""
    from hvd_train.sync.clients.secure import FEWEST, SecureSum

    if clients < FEWEST:
        raise UserError(
            f"sync.secure: a round of {'one client' if clients == 1 else 'two clients'} hides nobody, since of two "
            f"updates each client can compute the other from the sum; expected {FEWEST} clients or more: "
            "start more ranks, or raise fraction"
        )
    threshold = threshold or max(FEWEST, clients // 2 + 1)
    if not FEWEST <= threshold <= clients:
        raise UserError(
            f"sync.threshold: expected {FEWEST} to {clients}, the number of clients in a sum, got {threshold}; "
            "of two updates each client can compute the other from the sum"
        )
    return SecureSum(context.comm, threshold)
