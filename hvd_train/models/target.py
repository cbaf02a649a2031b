"""A model made by your own function or class, named as package.module:callable."""

from __future__ import annotations

from torch import nn

from hvd_train import targets
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.options import Annotated, Any


def create(
    spec: DataSpec,
    *,
    target: Annotated[str, "package.module:callable, called with `args`"],
    args: Annotated[dict[str, Any], "keyword arguments of the call"] = {},
) -> nn.Module:
    """What the callable returns; UserError where `args` do not fit it or that is no `torch.nn.Module`."""
    made = targets.call(target, args)
    if not isinstance(made, nn.Module):
        raise UserError(f"target '{target}' returned a {type(made).__name__}, expected a torch.nn.Module")
    return made
