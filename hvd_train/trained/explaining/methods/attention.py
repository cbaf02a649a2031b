"""Attention rollout: which positions the last layer of a transformer reads, through all its layers."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.trained.explaining.attention_weights import recorded
from hvd_train.trained.explaining.method import Attribution, Method, Question


class Rollout:
    """Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020.

    Half of each layer is its residual connection. The result is the row of the last position.
    """

    completes, signed = False, False

    def __call__(self, question: Question) -> Attribution:
        layers = recorded(lambda: question.score(*question.features))
        if not layers:
            raise UserError(
                "--method attention: the model calls neither scaled_dot_product_attention nor nn.MultiheadAttention; use "
                "integrated_gradients, which every differentiable model has"
            )
        flow = rollout(layers)
        for number, feature in enumerate(question.features):
            if feature.shape[1] == len(flow):
                values = [torch.zeros_like(other) for other in question.features]
                share = flow / feature[0, 0].numel()
                values[number] += share.view(-1, *[1] * (feature.dim() - 2))
                return Attribution(tuple(values))
        shapes = ", ".join(str(list(feature.shape[1:])) for feature in question.features)
        raise UserError(
            f"--method attention: the attention is between {len(flow)} positions, and the inputs are {shapes}; expected as "
            "many tokens or frames as positions"
        )


def rollout(layers: list[Tensor]) -> Tensor:
    """Return how much the last position reads of each, (length,), which adds up to 1.

    `layers` are weights (heads, length, length), the first layer first.
    """
    flow = torch.eye(layers[0].shape[-1])
    for weights in layers:
        flow = (weights.mean(0) + torch.eye(len(flow))) / 2 @ flow
    return flow[-1]


def create() -> Method:
    return Rollout()
