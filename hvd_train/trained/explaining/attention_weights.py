"""Records the attention weights of a model while it runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hvd_train.errors import UserError


def recorded(run: Callable[[], object]) -> list[Tensor]:
    """Return the weights (heads, length, length) of each self-attention in `run`, of the first row.

    Calls of `F.scaled_dot_product_attention` and `nn.MultiheadAttention` count. UserError for
    attention between sequences of different lengths.
    """
    found = _Record()
    with torch.no_grad(), found:
        run()
    return found.layers


class _Record(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.scaled_dot_product_attention:
            self._add(weights_of(*args, **kwargs)[0])
        if function is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        return function(*args, **kwargs)

    def _multi_head(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Ask the function for the weights, which the caller may not have done."""
        call = _MULTI_HEAD.bind(*args, **kwargs)
        wanted = call.arguments.get("need_weights", True)
        averaged = call.arguments.get("average_attn_weights", True)
        call.arguments.update(need_weights=True, average_attn_weights=False)
        outputs, weights = F.multi_head_attention_forward(*call.args, **call.kwargs)
        assert weights is not None
        self._add(weights[0] if weights.dim() == 4 else weights)
        given = weights.mean(-3) if averaged else weights
        return outputs, given if wanted else None

    def _add(self, weights: Tensor) -> None:
        if weights.shape[-1] != weights.shape[-2]:
            raise UserError(
                f"--method attention: {weights.shape[-2]} positions read {weights.shape[-1]} others, expected "
                "self-attention only; use integrated_gradients"
            )
        self.layers.append(weights.detach().float().cpu())


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def weights_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights (..., heads, length, length) of `F.scaled_dot_product_attention`."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)
