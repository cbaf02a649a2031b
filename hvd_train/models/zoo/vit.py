"""Small vision transformer: patches of an image as a sequence, through blocks of attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, Literal, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec, Layer
from hvd_train.models.fit import image
from hvd_train.models.zoo.transformer import Block


class VisionTransformer(nn.Module):
    """Maps images `(batch, channels, height, width)` to scores `(batch, outputs)`."""

    def __init__(self, patches: nn.Conv2d, number: int, blocks: list[Block], outputs: int, pool: str) -> None:
        """`number` is that of the patches of an image."""
        super().__init__()
        width = patches.out_channels
        self.patches, self.pool = patches, pool
        self.positions = nn.Embedding(number + (pool == "token"), width)
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self._scores(self.blocks(self._embedded(x)))

    def pipeline_layers(self) -> list[Layer]:
        blocks = [Layer((f"blocks.{i}",), block) for i, block in enumerate(self.blocks)]
        return [Layer(("patches", "positions"), self._embedded), *blocks, Layer(("head",), self._scores)]

    def _embedded(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        if self.pool == "token":
            embedded = F.pad(embedded, (0, 0, 1, 0))  # The token is what its position adds.
        return embedded + self.positions.weight

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x[:, 0] if self.pool == "token" else x.mean(1))
        return scores


def create(
    spec: DataSpec,
    *,
    patch: Annotated[PositiveInt, "pixels of a side of a patch; both sides of an image are multiples of it"] = 4,
    layers: Annotated[PositiveInt, "number of blocks"] = 4,
    width: Annotated[PositiveInt, "size of the vector of a patch; a multiple of heads"] = 64,
    heads: Annotated[PositiveInt, "attention heads of each block"] = 4,
    dropout: Annotated[Fraction, "fraction of attention weights and block outputs that is zeroed in training"] = 0.0,
    pool: Annotated[
        Literal["token", "mean"], "what the scores are computed of: a token of their own, or the mean of all patches"
    ] = "token",
) -> nn.Module:
    """Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929."""
    if width % heads:
        raise UserError(f"model.width: {width}, expected a multiple of heads, {heads}")
    planes, *sides = image(spec, "vit", patch)
    if any(side % patch for side in sides):
        raise UserError(
            f"model.patch: {patch}, expected a divisor of both sides of the images, {sides[0]} x {sides[1]}"
        )
    number = (sides[0] // patch) * (sides[1] // patch)
    blocks = [Block(width, heads, dropout, causal=False) for _ in range(layers)]
    model = VisionTransformer(nn.Conv2d(planes, width, patch, patch), number, blocks, spec.outputs, pool)
    return model.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
