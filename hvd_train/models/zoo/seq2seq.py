"""Small encoder-decoder transformer, such as for translation; it generates with cached keys and values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import length_of_pairs
from hvd_train.models.zoo.transformer import Keys, causal


class State(NamedTuple):
    """What the decoder keeps between two calls, for each row of a batch."""

    cross: list[Keys]
    """Of the encoded source, for each block."""
    own: list[Keys]
    """Of the target so far, for each block; empty at the beginning."""
    mask: Tensor | None
    """True where the source is no padding, bool `(batch, 1, 1, length)`."""


class Attention(nn.Module):
    """Attention with several heads. Maps `(batch, length, width)` to the same shape."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.memory, self.merge = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def keys(self, x: Tensor) -> Keys:
        """Return keys and values of the vectors `x` that are attended to."""
        key, value = self.memory(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def forward(self, x: Tensor, keys: Keys, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, *keys, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        merged: Tensor = self.merge(heads.transpose(1, 2).flatten(2))
        return merged


class EncoderBlock(nn.Module):
    """Attention, then two layers on each token; each part normalises its input and adds its output to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.feed, self.dropout = _feed(width, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys(normed), mask))
        fed: Tensor = x + self.feed(x)
        return fed


class DecoderBlock(nn.Module):
    """Causal attention, attention to the source, then two layers on each token, as in `EncoderBlock`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.cross_norm, self.cross = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.feed, self.dropout = _feed(width, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Keys | None, cross: Keys, mask: Tensor | None) -> tuple[Tensor, Keys]:
        """Return the outputs for the tokens `x` that follow those of `past`, and the keys of both."""
        normed = self.norm(x)
        keys = self.attention.keys(normed)
        if past is not None:
            keys = torch.cat([past[0], keys[0]], 2), torch.cat([past[1], keys[1]], 2)
        visible, is_causal = causal(x.shape[1], keys[0].shape[2], x.device)
        x = x + self.dropout(self.attention(normed, keys, visible, causal=is_causal))
        x = x + self.dropout(self.cross(self.cross_norm(x), cross, mask))
        return x + self.feed(x), keys


class Seq2Seq(nn.Module):
    """Maps tokens of sources and of targets to scores of each next token, `(batch, length, vocabulary)`."""

    positions: Tensor

    def __init__(
        self,
        vocabulary: int,
        longest: int,
        width: int,
        encoder: list[EncoderBlock],
        decoder: list[DecoderBlock],
        tie: bool,
    ) -> None:
        super().__init__()
        self.tokens, self.dropout = nn.Embedding(vocabulary, width), nn.Dropout(encoder[0].dropout.p)
        self.encoder, self.encoder_norm = nn.ModuleList(encoder), nn.LayerNorm(width)
        self.decoder, self.decoder_norm = nn.ModuleList(decoder), nn.LayerNorm(width)
        self.head = None if tie else nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("positions", sinusoids(longest, width), persistent=False)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`attention_mask` is 0 where `input_ids` are padding. Padding follows the tokens of a row."""
        return self.advance(decoder_input_ids, self.start(input_ids, attention_mask))[0]

    def start(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> State:
        """Encode the sources `(batch, length)`."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        x = self._embedded(input_ids, 0)
        for block in self.encoder:
            x = block(x, mask)
        x = self.encoder_norm(x)
        return State([block.cross.keys(x) for block in self.decoder], [], mask)  # type: ignore[union-attr, operator]

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the scores of the token after each of `tokens` `(batch, new)`, which follow those of `state`."""
        x = self._embedded(tokens, state.own[0][0].shape[2] if state.own else 0)
        own = []
        for i, block in enumerate(self.decoder):
            x, keys = block(x, state.own[i] if state.own else None, state.cross[i], state.mask)
            own.append(keys)
        # Assigning the weight would tie it too, but safetensors rejects a state_dict in which two names share a tensor.
        return F.linear(self.decoder_norm(x), (self.head or self.tokens).weight), state._replace(own=own)

    def _embedded(self, tokens: Tensor, start: int) -> Tensor:
        x = self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim)
        embedded: Tensor = self.dropout(x + self.positions[start : start + tokens.shape[1]])
        return embedded


def sinusoids(length: int, width: int) -> Tensor:
    """Return sines and cosines of the positions, `(length, width)`, as Vaswani et al."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


def _feed(width: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
    )


def create(
    spec: DataSpec,
    *,
    layers: Annotated[PositiveInt, "number of blocks of the encoder, and of the decoder"] = 2,
    width: Annotated[PositiveInt, "size of the vector of a token; a multiple of heads"] = 144,
    heads: Annotated[PositiveInt, "attention heads of each block"] = 4,
    dropout: Annotated[
        Fraction, "fraction of embeddings, attention weights and block outputs that is zeroed in training"
    ] = 0.1,
    tie: Annotated[bool, "use the token embedding as the output layer too, which saves parameters"] = True,
) -> nn.Module:
    """Return the model of Vaswani et al., arXiv 1706.03762, which normalises the inputs of its parts.

    Sources and targets share one vocabulary and its embedding.
    """
    if width % heads:
        raise UserError(f"model.width: {width}, expected a multiple of heads, {heads}")
    longest = length_of_pairs(spec, "seq2seq")
    encoder = [EncoderBlock(width, heads, dropout) for _ in range(layers)]
    decoder = [DecoderBlock(width, heads, dropout) for _ in range(layers)]
    return Seq2Seq(spec.outputs, longest, width, encoder, decoder, tie).apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
