"""Keep parameters of a model as they are while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from hvd_train.errors import UserError, nearest


def freeze_(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train no parameter whose name, or one of whose names, fits one of `patterns`, with * and ?.

    A frozen parameter has no gradient and no optimizer state, and ranks send nothing of it. Raise
    UserError for a pattern that fits none.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        fitting = [p for name, p in named.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"model.freeze: '{pattern}' fits no parameter of the model{nearest(pattern, named)}")
        for parameter in fitting:
            parameter.requires_grad_(False)
