"""Parts of models of sequences, whose outputs do not depend on the padding of a batch.

Padding is at the end of a sequence. A mask `(batch, time)` is True for the steps of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.fit import sequence

Frames = dict[str, Tensor]
"""`logits`, log-probabilities `(batch, time, outputs)`, and `lengths` `(batch,)`, as the loss `ctc` reads them."""


def steps(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sequences as `(batch, time, features)` with zeros for padding, and their mask.

    Spectra `(batch, channels, features, time)` have the features of all channels in each step.
    Without a mask, every step counts.
    """
    if x.dim() == 4:
        x = x.flatten(1, 2).transpose(1, 2)
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x.masked_fill(~mask[..., None], 0), mask


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean `(batch, width)` over the steps of each sequence of `x` `(batch, time, width)`."""
    x = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    return x.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


class Head(nn.Module):
    """Maps sequences `(batch, time, width)` to outputs of their mean, or of every step."""

    def __init__(self, width: int, outputs: int, per_step: bool) -> None:
        super().__init__()
        self.linear, self.per_step = nn.Linear(width, outputs), per_step

    def forward(self, x: Tensor, mask: Tensor) -> Tensor | Frames:
        """Return `(batch, outputs)`, or the outputs of the steps."""
        if self.per_step:
            return {"logits": F.log_softmax(self.linear(x), -1), "lengths": mask.sum(1)}
        outputs: Tensor = self.linear(mean(x, mask))
        return outputs


class Tokens(nn.Module):
    """Gives a model of sequences the embeddings of tokens `(batch, time)`."""

    def __init__(self, vocabulary: int, width: int, model: nn.Module) -> None:
        super().__init__()
        self.embedding, self.model = nn.Embedding(vocabulary, width), model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | Frames:
        mask = None if attention_mask is None else attention_mask.bool()
        outputs: Tensor | Frames = self.model(self.embedding(input_ids), mask)
        return outputs


def with_tokens(spec: DataSpec, model: str, width: int, make: Callable[[int], nn.Module]) -> nn.Module:
    """Return the model that `make` returns for the number of features of a step.

    For tokens, it follows their embeddings of size `width`. Raise UserError for other data.
    """
    if "input_ids" in spec.vocabularies:
        return Tokens(spec.vocabularies["input_ids"], width, make(width))
    return make(sequence(spec, model))


def check_kernel(kernel: int) -> None:
    """Raise UserError for an even number of steps, of which none is in the middle."""
    if kernel % 2 == 0:
        raise UserError(f"model.kernel: {kernel}, expected an odd number")
