"""Saves and restores the global random generators of a rank.

The draws after a restore equal those after the save. The generators are those of Python's `random`,
of numpy's legacy functions, and of torch on the CPU and on the current GPU. A generator object of
the user's code (`numpy.random.default_rng`, `torch.Generator`) is out of reach: the code resumes
with a new one.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.seeding import TORCH_GENERATOR

_TORCH, _CUDA, _PYTHON, _NUMPY = "rng.torch", "rng.cuda", "rng.python", "rng.numpy"
_CACHED = ".gaussian"
"""Suffix of a name: the Gaussian number that was drawn with the previous one and not yet returned.

Empty if there is none.
"""


def seed_generators(seed: int) -> None:
    """Seed all generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with TORCH_GENERATOR:
        torch.manual_seed(seed)


def state() -> dict[str, Tensor]:
    """Return the states of all generators, as tensors."""
    _, words, gaussian = random.getstate()
    with TORCH_GENERATOR:
        of_torch = torch.get_rng_state()
    states = {
        _TORCH: of_torch,
        _PYTHON: torch.tensor(words, dtype=torch.int64),
        _PYTHON + _CACHED: _number(gaussian),
    }
    legacy: Any = np.random.get_state(legacy=False)
    if legacy["bit_generator"] == "MT19937":  # a program that installs another one has to save it itself
        words = np.append(legacy["state"]["key"], legacy["state"]["pos"])
        states[_NUMPY] = torch.from_numpy(words.astype(np.int64))
        states[_NUMPY + _CACHED] = _number(legacy["gauss"] if legacy["has_gauss"] else None)
    if torch.cuda.is_available():
        states[_CUDA] = torch.cuda.get_rng_state()
    return states


def load(states: dict[str, Tensor]) -> None:
    """Restore what `state` returned. Checkpoints of format 1 have no cached numbers."""
    with TORCH_GENERATOR:
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
