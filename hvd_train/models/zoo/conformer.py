"""Conformer: blocks of attention and convolution over sequences, such as speech."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PerStep, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.models.sequences import Frames, Head, check_kernel, steps, with_tokens


class Attention(nn.Module):
    """Self-attention with several heads, whose positions are relative.

    Queries and keys are rotated by angles that grow with the position (Su et al., arXiv 2104.09864).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        keys = mask[:, None, None, :]
        heads = F.scaled_dot_product_attention(_rotated(query), _rotated(key), value, keys, dropout_p=dropout)
        merged: Tensor = self.merge(heads.transpose(1, 2).flatten(2))
        return merged


class Convolution(nn.Module):
    """A gated pointwise, a depthwise and a pointwise convolution. Padding enters as zeros."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.gate, self.merge = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = F.glu(self.gate(x), -1).masked_fill(~mask[..., None], 0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        merged: Tensor = self.merge(F.silu(self.norm(x)))
        return merged


class Block(nn.Module):
    """Half a feed-forward step, attention, convolution, and another half, each normalised before.

    The normalisation within the convolution is of each step. The paper has batch normalisation,
    which depends on the padding and on np.
    """

    def __init__(self, width: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.before, self.after = _feed(width, dropout), _feed(width, dropout)
        self.attention, self.convolution = Attention(width, heads, dropout), Convolution(width, kernel)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.before(x) / 2
        x = x + self.dropout(self.attention(self.norms[0](x), mask))
        x = x + self.dropout(self.convolution(self.norms[1](x), mask))
        normalised: Tensor = self.norms[2](x + self.after(x) / 2)
        return normalised


class Conformer(nn.Module):
    """Maps sequences `(batch, time, features)` and a mask `(batch, time)` to the outputs of `Head`."""

    def __init__(self, features: int, width: int, join: int, blocks: list[Block], head: Head) -> None:
        super().__init__()
        self.join, self.enter = join, nn.Linear(features * join, width)
        self.blocks, self.head = nn.ModuleList(blocks), head

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | Frames:
        x, mask = steps(x, mask)
        x = self.enter(_joined(x, self.join))
        mask = mask[:, :: self.join]
        for block in self.blocks:
            x = block(x, mask)
        outputs: Tensor | Frames = self.head(x, mask)
        return outputs


def create(
    spec: DataSpec,
    *,
    layers: Annotated[PositiveInt, "number of blocks"] = 2,
    width: Annotated[PositiveInt, "size of the vector of a step; twice the heads, or a multiple of that"] = 64,
    heads: Annotated[PositiveInt, "attention heads of each block"] = 4,
    kernel: Annotated[PositiveInt, "steps that a convolution sees, an odd number"] = 15,
    join: Annotated[PositiveInt, "steps that are joined to one at the start, which shortens sequences"] = 1,
    dropout: Annotated[
        Fraction, "fraction of attention weights and of outputs of parts that is zeroed in training"
    ] = 0.1,
    per_step: PerStep = False,
) -> nn.Module:
    """Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition",
    arXiv 2005.08100, and the mean of the steps.
    """
    if width % (2 * heads):
        raise UserError(f"model.width: {width}, expected a multiple of twice the heads, {2 * heads}")

    check_kernel(kernel)

    def make(features: int) -> nn.Module:
        blocks = [Block(width, heads, kernel, dropout) for _ in range(layers)]
        return Conformer(features, width, join, blocks, Head(width, spec.outputs, per_step))

    return with_tokens(spec, "conformer", width, make)


def _feed(width: int, dropout: float) -> nn.Module:
    inner = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
    return nn.Sequential(nn.LayerNorm(width), inner, nn.Dropout(dropout))


def _joined(x: Tensor, join: int) -> Tensor:
    """Return `x` `(batch, time, features)` with each `join` steps as one; zeros fill the last."""
    joined: Tensor = F.pad(x, (0, 0, 0, -x.shape[1] % join)).unflatten(1, (-1, join)).flatten(2)
    return joined


def _rotated(x: Tensor) -> Tensor:
    """Return `x` `(..., time, size)` with pairs of numbers rotated by angles of their position."""
    half = x.shape[-1] // 2
    frequencies = torch.pow(10000, -torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequencies
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
