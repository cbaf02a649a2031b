"""Small convolutional network over time: blocks that each halve a sequence, then a linear layer."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Field, PerStep, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.sequences import Frames, Head, check_kernel, steps, with_tokens


class Block(nn.Module):
    """Convolution, normalisation of each step, ReLU, and the maximum of two steps.

    Steps of padding are 0 before and after, as are the steps beyond both ends of a sequence.
    """

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(before, after, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(batch, time / 2, after)` and its mask, for `x` `(batch, time, before)`."""
        x = F.relu(self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2)))
        x = x.masked_fill(~mask[..., None], 0)
        return F.pad(x, (0, 0, 0, x.shape[1] % 2)).unflatten(1, (-1, 2)).amax(2), mask[:, ::2]


class Convolutions(nn.Module):
    """Maps sequences `(batch, time, features)` and a mask `(batch, time)` to the outputs of `Head`."""

    def __init__(self, blocks: list[Block], head: Head) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | Frames:
        x, mask = steps(x, mask)
        for block in self.blocks:
            x, mask = block(x, mask)
        outputs: Tensor | Frames = self.head(x, mask)
        return outputs


def create(
    spec: DataSpec,
    *,
    channels: Annotated[list[PositiveInt], Field(min_length=1), "channels of each block"] = [64, 64],
    kernel: Annotated[PositiveInt, "steps that a convolution sees, an odd number"] = 5,
    width: Annotated[PositiveInt, "size of the embedding of tokens"] = 64,
    per_step: PerStep = False,
) -> nn.Module:
    """Return blocks of convolution, layer normalisation, ReLU and pooling, and the mean of the steps."""
    check_kernel(kernel)

    def make(features: int) -> nn.Module:
        blocks = [Block(before, after, kernel) for before, after in pairwise([features, *channels])]
        return Convolutions(blocks, Head(channels[-1], spec.outputs, per_step))

    return with_tokens(spec, "conv1d", width, make)
