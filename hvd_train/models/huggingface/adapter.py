"""Calls a model of transformers as ddl calls its models."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.models.base import Layer, Pair
from hvd_train.models.huggingface.layers import family

LABELS = "labels"


class Adapter(nn.Module):
    """Has the modules, parameters and buffers of `model`, under the same names.

    Inputs are called by keyword as `model.forward` takes them, and others are left out. Inputs
    without a name are the main input of the model, a mask of it (bool), and targets. The result has
    `logits`, and `loss` if there are targets. For `speech-ctc` the logits are log-probabilities, and
    `input_lengths` the time steps of each sample.
    """

    def __init__(self, model: Any, task: str) -> None:
        super().__init__()
        # One dict for both: what divides, compresses or replaces a module does so in the model of the library.
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._inner, self._task = (model,), task
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    @property
    def inner(self) -> Any:
        """The model of the library."""
        return self._inner[0]

    @property
    def kind(self) -> str:
        """The name of the class of the model, for messages."""
        return type(self.inner).__name__

    def pipeline_layers(self) -> list[Layer]:
        """Return the layers of the model; itself if they are not known."""
        known = family(self.inner)
        return (known and known.layers(self.inner)) or [Layer(("",), self)]

    def tensor_pairs(self) -> Iterable[Pair]:
        known = family(self.inner)
        return known.pairs(self.inner) if known else ()

    def train(self, mode: bool = True) -> Adapter:
        self.inner.training = mode
        return super().train(mode)

    def forward(self, *values: Any, **named: Any) -> dict[str, Tensor]:
        inputs = {**self._named(values), **named}
        shifted = inputs.pop(LABELS, None) if values and self._task == "causal-lm" else None
        taken = {name: _input(name, value) for name, value in inputs.items() if name in self._takes}
        found = self.inner(**taken, return_dict=True)
        outputs = {name: found[name] for name in ("loss", "logits") if found.get(name) is not None}
        if shifted is not None:
            outputs["loss"] = F.cross_entropy(outputs["logits"].flatten(0, 1), shifted.flatten())
        return self._for_ctc(outputs, taken) if self._task == "speech-ctc" else outputs

    def _named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        if not values:
            return {}
        main, *others = values
        names = ("attention_mask" if x.dtype == torch.bool else LABELS for x in others)
        return {self.inner.main_input_name: main, **dict(zip(names, others, strict=True))}

    def _for_ctc(self, outputs: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
        scores, mask = outputs["logits"], inputs.get("attention_mask")
        steps = torch.full(scores.shape[:1], scores.shape[1], device=scores.device)
        if mask is not None:
            steps = self.inner._get_feat_extract_output_lengths(mask.sum(-1)).long()
        return {**outputs, "logits": scores.float().log_softmax(-1), "input_lengths": steps}


def _input(name: str, value: Any) -> Any:
    """Return an input as the library takes it: sounds without channels, masks as numbers."""
    if name == "input_values" and isinstance(value, Tensor) and value.dim() == 3:
        return value.squeeze(1)
    return value.long() if isinstance(value, Tensor) and value.dtype == torch.bool else value
