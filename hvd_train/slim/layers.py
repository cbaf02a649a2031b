"""The layers that a model can be compressed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from hvd_train.errors import UserError, nearest

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def chosen(model: nn.Module, patterns: Sequence[str], option: str) -> Iterator[tuple[str, Layer]]:
    """Yield path and module of each linear and convolutional layer whose path fits a pattern.

    A lazy layer, which has no shape yet, is none. Raise UserError, which names the `option`, if a
    pattern fits none.
    """
    modules = dict(model.named_modules())
    known = {path: m for path, m in modules.items() if isinstance(m, KINDS) and not is_lazy(m.weight)}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in known):
            listed = nearest(pattern, list(known)) if known else ", and the model has no such layers at all"
            raise UserError(f"{option}: '{pattern}' fits no linear or convolutional layer of the model{listed}")
    for path, module in known.items():
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            yield path, module
