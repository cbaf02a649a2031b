"""Seeds of samples, and the global random generators of the CPU."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

TORCH_GENERATOR = threading.Lock()
"""Is held by whoever reads or sets torch's generator of the CPU.

Torch holds a lock of its own while it makes the tensor of a state. If the garbage collector then lets
another thread run that wants this lock, which it waits for without letting others run, both wait for
ever.
"""


def sample_seed(*numbers: int) -> int:
    """Return a seed below 2^63 for `numbers`. numpy's SeedSequence takes five times as long."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def seed_globals(seed: int) -> None:
    """Seed the global generators of the CPU."""
    with TORCH_GENERATOR:
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the global generators of the CPU after the block."""
    with TORCH_GENERATOR:
        of_torch = torch.get_rng_state()
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        with TORCH_GENERATOR:
            torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
