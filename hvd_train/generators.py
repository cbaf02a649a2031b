"""The global random generators of a rank, saved and restored such that every next draw is the one that would have come.

Those of Python's `random`, of numpy's legacy functions and of torch on the CPU and on the current GPU. A generator object that a
user's code makes (`numpy.random.default_rng`, `torch.Generator`) is out of reach: such code resumes with a new one.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TORCH, _CUDA, _PYTHON, _NUMPY = "rng.torch", "rng.cuda", "rng.python", "rng.numpy"
_CACHED = ".gaussian"
"""After a name: a Gaussian number that was drawn with the last one and is still to be given out; empty if there is none."""


def seed_generators(seed: int) -> None:
    """Seed all of them, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def state() -> dict[str, Tensor]:
    """All of it, as tensors."""
    _, words, gaussian = random.getstate()
    states = {
        _TORCH: torch.get_rng_state(),
        _PYTHON: torch.tensor(words, dtype=torch.int64),
        _PYTHON + _CACHED: _number(gaussian),
    }
    legacy: Any = np.random.get_state(legacy=False)
    if legacy["bit_generator"] == "MT19937":  # what else a program has put there, it has to save by itself
        words = np.append(legacy["state"]["key"], legacy["state"]["pos"])
        states[_NUMPY] = torch.from_numpy(words.astype(np.int64))
        states[_NUMPY + _CACHED] = _number(legacy["gauss"] if legacy["has_gauss"] else None)
    if torch.cuda.is_available():
        states[_CUDA] = torch.cuda.get_rng_state()
    return states


def load(states: dict[str, Tensor]) -> None:
    """The reverse of `state`. A checkpoint of an earlier format has no cached numbers."""
    torch.set_rng_state(states[_TORCH])
    random.setstate((3, tuple(states[_PYTHON].tolist()), _cached(states, _PYTHON)))
    if _NUMPY in states:
        *key, position = states[_NUMPY].tolist()
        gaussian = _cached(states, _NUMPY)
        words = np.array(key, dtype=np.uint32)
        np.random.set_state(("MT19937", words, position, int(gaussian is not None), gaussian or 0.0))
    if _CUDA in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[_CUDA])


def _number(value: float | None) -> Tensor:
    return torch.tensor([] if value is None else [value], dtype=torch.float64)


def _cached(states: dict[str, Tensor], name: str) -> float | None:
    values: list[float] = states.get(name + _CACHED, torch.empty(0)).tolist()
    return values[0] if values else None
