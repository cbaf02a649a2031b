"""Hides a part of the tokens of a text, which a masked language model predicts; held-out texts, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field, NonNegativeInt
from hvd_train.data.batch import LABELS, label_key
from hvd_train.data.nesting import shown
from hvd_train.data.transform import Transform, TransformContext
from hvd_train.errors import UserError

TOKENS = "input_ids"
IGNORED = -100
"""The target of tokens that are not predicted."""
NAMES = ("[MASK]", "<mask>")
"""Names of the token that stands for a hidden one."""
MASKED, RANDOM = 0.8, 0.1
"""Parts of the chosen tokens that the mask replaces, and that random tokens replace. Others stay."""


@dataclass(frozen=True)
class MaskTokens(Transform):
    """Chooses tokens and makes them the targets. Devlin et al., arXiv 1810.04805, section 3.1.

    Samples become dicts of inputs with `input_ids` and targets, which are -100 for tokens that are not
    chosen. Targets that the samples have are dropped. Held-out samples have the same masks in every
    evaluation.
    """

    probability: float
    mask: int
    vocabulary: int
    special: tuple[int, ...]
    """Tokens that are never chosen."""
    label: str | None

    everywhere = True

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        inputs = self._inputs(sample)
        tokens = inputs[TOKENS]
        chosen = torch.rand(tokens.shape, generator=generator) < self.probability
        chosen &= ~torch.isin(tokens, torch.tensor(self.special, dtype=tokens.dtype))
        if "attention_mask" in inputs:
            chosen &= torch.as_tensor(inputs["attention_mask"]).bool()
        kind = torch.rand(tokens.shape, generator=generator)
        drawn = torch.randint(self.vocabulary, tokens.shape, generator=generator).to(tokens.dtype)
        replaced = drawn.where(kind >= MASKED, self.mask).where(kind < MASKED + RANDOM, tokens)
        targets = tokens.where(chosen, IGNORED)
        return {**inputs, TOKENS: replaced.where(chosen, tokens), self.label or LABELS[0]: targets}

    def _inputs(self, sample: Any) -> dict[str, Any]:
        inputs = {TOKENS: sample[0] if isinstance(sample, tuple | list) and len(sample) > 1 else sample}
        if isinstance(sample, Mapping):
            key = label_key(dict(sample), self.label) if self.label in sample or self.label is None else None
            inputs = {name: value for name, value in sample.items() if name != key}
        tokens = torch.as_tensor(inputs[TOKENS]) if TOKENS in inputs and _is_array(inputs[TOKENS]) else None
        if tokens is None or tokens.is_floating_point() or tokens.dim() != 1:
            raise UserError(
                f"data.transforms: mask_tokens: a sample is {shown(sample)}, expected tokens, or a dict with '{TOKENS}'"
            )
        return {**inputs, TOKENS: tokens}


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__") or isinstance(value, list)


def create(
    context: TransformContext,
    *,
    probability: Annotated[float, Field(gt=0, le=1), "part of the tokens that are predicted"] = 0.15,
    mask: Annotated[
        NonNegativeInt | None,
        "number of the token that stands for a hidden one; by default that of [MASK] or <mask> of the tokenizer",
    ] = None,
) -> MaskTokens:
    """Raise UserError if the data has no tokens, or its tokenizer no mask."""
    spec = context.spec
    vocabulary = spec.vocabularies.get(TOKENS, spec.outputs if spec.task == "language" else 0)
    if not vocabulary:
        raise UserError(
            f"data.transforms: mask_tokens needs tokens, and the data is for {spec.task} without a tokenizer"
        )
    special = _special(context.preprocessing.get("tokenizer", {}))
    number = next((special[name] for name in NAMES if name in special), None) if mask is None else mask
    if number is None:
        raise UserError(
            f"data.transforms: mask_tokens: the tokenizer has no {' or '.join(NAMES)}; give 'mask', the number of a token that "
            "no text has"
        )
    if number >= vocabulary:
        raise UserError(f"data.transforms: mask_tokens.mask: {number}, expected a token below {vocabulary}")
    return MaskTokens(probability, number, vocabulary, tuple(sorted({*special.values(), number})), context.label)


def _special(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a tokenizer of the library `tokenizers`, by name."""
    added = json.loads(tokenizer["json"])["added_tokens"] if "json" in tokenizer else []
    return {token["content"]: token["id"] for token in added if token["special"]}
