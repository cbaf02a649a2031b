"""Groups of parameters that have options of their own: the parameters of a group, and their options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hvd_train.errors import UserError, nearest

BIAS, NORM = "bias", "norm"
"""Kinds of parameters."""

Key = tuple[int, ...]
"""The numbers of the groups that a parameter is in."""

_BIAS = re.compile(r"(^|_)bias(_|$)")


@dataclass(frozen=True)
class Group:
    """Parameters whose name fits one of `patterns` and which are of one of `kinds`, and their options."""

    patterns: Sequence[str]
    kinds: Sequence[str] = ()
    """Empty: parameters of all kinds."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def has(self, name: str, kinds: frozenset[str]) -> bool:
        """Return True if the parameter `name`, which is of `kinds`, is in the group."""
        fits = any(fnmatchcase(name, pattern) for pattern in self.patterns)
        return fits and (not self.kinds or not kinds.isdisjoint(self.kinds))


def keys(model: nn.Module, groups: Sequence[Group]) -> dict[str, Key]:
    """Return the groups of each parameter of `model`, by name."""
    of = kinds(model)
    return {name: tuple(n for n, group in enumerate(groups) if group.has(name, of[name])) for name in of}


def kinds(model: nn.Module) -> dict[str, frozenset[str]]:
    """Return the kinds of each parameter of `model`, by name.

    A bias is one by its name. The parameters of a layer whose class is called a norm are of the kind norm.
    """
    found = {}
    for name, _ in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = type(model.get_submodule(path)).__name__
        of = (BIAS,) * bool(_BIAS.search(leaf)) + (NORM,) * ("norm" in module.lower())
        found[name] = frozenset(of)
    return found


def check(model: nn.Module, groups: Sequence[Group]) -> None:
    """Raise UserError for a pattern, and for a kind, that no parameter of `model` fits."""
    of = kinds(model)
    for number, group in enumerate(groups):
        where = f"optimizer.groups[{number}]"
        for pattern in group.patterns:
            if not any(fnmatchcase(name, pattern) for name in of):
                raise UserError(f"{where}.match: no parameter of the model is called '{pattern}'{nearest(pattern, of)}")
        if not any(group.has(name, its) for name, its in of.items()):
            raise UserError(
                f"{where}: no parameter that fits {', '.join(group.patterns)} is of the kind {' or '.join(group.kinds)}"
            )
