"""Mean of the embeddings of a text's tokens, then fully connected layers: a baseline for texts."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import tokens


class EmbeddingBag(nn.Module):
    """Maps tokens `(batch, length)`, in any order within a text, to `(batch, outputs)`."""

    def __init__(self, embeddings: nn.Embedding, head: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.head = embeddings, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the outputs. Tokens where `attention_mask` is 0 are padding and do not count."""
        embedded: Tensor = self.embeddings(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask.to(embedded.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        scores: Tensor = self.head((weights.unsqueeze(-2) @ embedded).squeeze(-2))
        return scores


def create(
    spec: DataSpec,
    *,
    width: Annotated[PositiveInt, "size of the vector of a token"] = 128,
    hidden: Annotated[list[PositiveInt], "neurons of each hidden layer"] = [128],
    dropout: Annotated[Fraction, "fraction of the mean and of hidden outputs that is zeroed in training"] = 0.0,
    sparse: Annotated[
        bool, "send and update only the vectors of tokens that occur in a batch; needs SGD, Adagrad or SparseAdam"
    ] = False,
) -> nn.Module:
    """Return a model as the one of Joulin et al., arXiv 1607.01759 (fastText), with hidden layers."""
    sizes = [width, *hidden]
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    head = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))
    return EmbeddingBag(nn.Embedding(tokens(spec, "embedding_bag"), width, sparse=sparse), head)
