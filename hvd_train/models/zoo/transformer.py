"""Small causal language model: a decoder-only transformer with learned positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec, Layer
from hvd_train.models.fit import length

Keys = tuple[Tensor, Tensor]
"""Keys and values of an attention, each `(batch, heads, length, width / heads)`."""


class Attention(nn.Module):
    """Self-attention with several heads. Maps `(batch, length, width)` to the same shape.

    If it is causal, no position reads a later one.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor, past: Keys | None = None) -> tuple[Tensor, Keys]:
        """Return the outputs for the tokens `x`, which follow those of `past`, and the keys of both."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        dropout = self.dropout if self.training else 0.0
        mask, is_causal = causal(query.shape[2], key.shape[2], x.device) if self.causal else (None, False)
        heads = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        merged: Tensor = self.merge(heads.transpose(1, 2).flatten(2))
        return merged, (key, value)


def causal(new: int, total: int, device: torch.device) -> tuple[Tensor | None, bool]:
    """Return the mask by which the last `new` of `total` tokens see those before them, and themselves.

    The mask is None, and the second value True, where torch makes the mask.
    """
    if new == total:
        return None, True
    return (None if new == 1 else torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)), False


class Block(nn.Module):
    """Attention, then two layers on each token.

    Each part normalises its input and adds its output to the input.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attention = nn.Sequential(
            nn.LayerNorm(width), Attention(width, heads, dropout, causal), nn.Dropout(dropout)
        )
        self.feed = nn.Sequential(nn.LayerNorm(width), feed, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.feed(x)  # type: ignore[no-any-return]

    def advance(self, x: Tensor, past: Keys | None) -> tuple[Tensor, Keys]:
        """Return the outputs for the tokens `x`, which follow those of `past`, and the keys of both."""
        norm, attention, dropout = self.attention
        attended, keys = attention.attend(norm(x), past)  # type: ignore[operator]
        x = x + dropout(attended)
        return x + self.feed(x), keys


class Transformer(nn.Module):
    """Maps tokens `(batch, length)` to scores of the next token, `(batch, length, vocabulary)`."""

    def __init__(self, vocabulary: int, context: int, width: int, blocks: list[Block], tie: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = None if tie else nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._scores(self.blocks(self._embedded(tokens)))

    def start(self) -> list[Keys]:
        """Return the state of `advance` before the first token: no keys."""
        return []

    def advance(self, tokens: Tensor, state: list[Keys]) -> tuple[Tensor, list[Keys]]:
        """Return the scores of the token after each of `tokens` `(batch, new)`, which follow those of `state`.

        The state has the keys and values of each block. All tokens together fit into the context.
        """
        x, keys = self._embedded(tokens, state[0][0].shape[2] if state else 0), []
        *blocks, norm = self.blocks
        for i, block in enumerate(blocks):
            x, own = block.advance(x, state[i] if state else None)  # type: ignore[operator]
            keys.append(own)
        return self._scores(norm(x)), keys

    def pipeline_layers(self) -> list[Layer]:
        blocks = [Layer((f"blocks.{i}",), block) for i, block in enumerate(self.blocks)]
        head = "tokens" if self.head is None else "head"
        return [Layer(("tokens", "positions"), self._embedded), *blocks, Layer((head,), self._scores)]

    def _embedded(self, tokens: Tensor, start: int = 0) -> Tensor:
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        embedded: Tensor = self.tokens(tokens) + self.positions(positions)
        return embedded

    def _scores(self, x: Tensor) -> Tensor:
        # Assigning the weight would tie it too, but safetensors rejects a state_dict in which two names share a tensor.
        return F.linear(x, (self.head or self.tokens).weight)


def create(
    spec: DataSpec,
    *,
    layers: Annotated[PositiveInt, "number of blocks"] = 2,
    width: Annotated[PositiveInt, "size of the vector of a token; a multiple of heads"] = 128,
    heads: Annotated[PositiveInt, "attention heads of each block"] = 4,
    dropout: Annotated[Fraction, "fraction of attention weights and block outputs that is zeroed in training"] = 0.0,
    tie: Annotated[bool, "use the token embedding as the output layer too, which saves parameters"] = True,
) -> nn.Module:
    """Return blocks as in Radford et al., "Language Models are Unsupervised Multitask Learners"
    (GPT-2), 2019.
    """
    if width % heads:
        raise UserError(f"model.width: {width}, expected a multiple of heads, {heads}")
    context = length(spec, "transformer")
    blocks = [Block(width, heads, dropout) for _ in range(layers)]
    return Transformer(spec.outputs, context, width, blocks, tie).apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
