"""Random generators that a model or a data set may draw from without having made one: Python's, NumPy's, torch's."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed the global generators of `random`, `numpy` and `torch`, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
