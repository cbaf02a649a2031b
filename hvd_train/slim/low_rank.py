"""Low-rank layers: a weight becomes the product of two smaller ones."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.config.compress_model import LowRankSection
from hvd_train.errors import UserError
from hvd_train.slim import quantization
from hvd_train.slim.layers import Layer, chosen

OPTION = "compress_model.low_rank"
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def rank_of(section: LowRankSection, singular: Tensor) -> int:
    """Return the rank that `section` asks for, given the singular values in descending order."""
    if section.energy is None:
        return min(section.rank or 1, len(singular))
    energies = singular.double().square().cumsum(0)
    return min(int((energies < section.energy * energies[-1]).sum()) + 1, len(singular))


def largest_rank(shape: torch.Size) -> int:
    """Return the largest rank at which two factors have fewer elements than a weight (out, in, ...)."""
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows * columns - 1) // (rows + columns)


def factors(weight: Tensor, section: LowRankSection) -> tuple[Tensor, Tensor] | None:
    """Return first (r, in, ...) and second (out, r) with second @ first near `weight` (out, in, ...).

    They are the best ones of their rank (Eckart and Young, 1936); each has the square root of the
    singular values. None if they would have no fewer elements than `weight`.
    """
    u, s, v = torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)
    r = rank_of(section, s)
    if r > largest_rank(weight.shape):
        return None
    root = s[:r].sqrt()
    first, second = (root[:, None] * v[:r]).view(r, *weight.shape[1:]), u[:, :r] * root
    return first.to(weight).contiguous(), second.to(weight).contiguous()


class LowRank(nn.Sequential):
    """A layer, or two layers without an activation between them in its place.

    Loads the parameters of either form, with any rank. It also loads those of the layer itself,
    which it factorises as `section` asks.
    """

    def __init__(self, layer: Layer, section: LowRankSection) -> None:
        super().__init__(layer)
        self._section, self._shape = section, layer.weight.shape

    @property
    def weight(self) -> Tensor:
        """The weight of the layer itself, for models that read it; made anew at each access."""
        if len(self) == 1:
            return self[0].weight  # type: ignore[return-value]
        first, second = (layer.weight.flatten(1) for layer in self)  # type: ignore[operator]
        return (second @ first).view(self._shape)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer itself."""
        return self[-1].bias  # type: ignore[return-value]

    @property
    def saved(self) -> int:
        """The number of parameters less than in the layer itself."""
        return math.prod(self._shape) - sum(w.numel() for name, w in self.named_parameters() if name.endswith("weight"))

    @torch.no_grad()
    def take_(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the parameters of the layer itself, as factors if these are fewer."""
        found = factors(weight, self._section)
        values = [weight] if found is None else list(found)
        self._become_(None if found is None else len(values[0]))
        for layer, value in zip(self, values, strict=True):
            own: Any = layer.weight
            own.copy_(value.view_as(own))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def _become_(self, rank: int | None) -> None:
        """Let there be two layers of `rank`, or one for None, with any parameters."""
        first: Any = self[0]
        kind, bias = quantization.plain_type(first), self.bias is not None
        where = {"device": first.weight.device, "dtype": first.weight.dtype}
        is_linear = isinstance(first, nn.Linear)
        geometry = {} if is_linear else {name: getattr(first, name) for name in _GEOMETRY}
        inner = partial(kind, first.in_features if is_linear else first.in_channels, **geometry, **where)
        outer = partial(kind, **({} if is_linear else {"kernel_size": 1}), **where)
        outputs = self._shape[0]
        made = (
            [inner(outputs, bias=bias)] if rank is None else [inner(rank, bias=False), outer(rank, outputs, bias=bias)]
        )
        if type(first) is not kind:
            for layer in made:
                quantization.round_(layer)
        self._modules.clear()
        self.extend(made)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        whole = state_dict.pop(f"{prefix}weight", None)
        if whole is not None:
            self.take_(whole, state_dict.pop(f"{prefix}bias", None))
            state_dict |= {prefix + name: value for name, value in self.state_dict().items()}
        first = state_dict.get(f"{prefix}0.weight")
        if first is not None:
            rank = len(first) if f"{prefix}1.weight" in state_dict else None
            if rank != (len(self[0].weight) if len(self) > 1 else None):  # type: ignore[arg-type]
                self._become_(rank)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def replace_(model: nn.Module, section: LowRankSection) -> None:
    """Let the chosen layers of `model` be `LowRank`.

    Grouped convolutions and layers that share their weight stay as they are. With a rank layers are
    factorised here, with an energy once parameters are loaded. Raise UserError if no layer becomes
    smaller.
    """
    made = []
    users: Counter[Any] = Counter(p for module in model.modules() for p in module._parameters.values())
    for path, layer in list(chosen(model, section.layers, f"{OPTION}.layers")):
        if getattr(layer, "groups", 1) == 1 and users[layer.weight] == 1:
            low = LowRank(layer, section)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, low)
            made.append(low)
    if section.rank is not None:
        for low in made:
            low.take_(low.weight.detach(), low.bias)
        check(model)


def check(model: nn.Module) -> None:
    """Raise UserError if low-rank layers save no parameters."""
    if not saved(model):
        raise UserError(f"{OPTION}: no chosen layer becomes smaller; take a smaller rank or energy, or other layers")


def saved(model: nn.Module) -> int:
    """Return the number of parameters that low-rank layers save."""
    return sum(m.saved for m in model.modules() if isinstance(m, LowRank))
