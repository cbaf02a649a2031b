"""Begins to generate with a model: with cached keys and values if the model keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.compute.calling import caller
from hvd_train.compute.precision import Precision
from hvd_train.data.nesting import map_tensors
from hvd_train.data.spec import DataSpec
from hvd_train.trained.generating.scores import Cached, Recomputed, Scores, UpTo


class Decoding:
    """Starts sequences of `model`, in the precision and on the device of its run.

    Inputs are a dict of the inputs of an encoder-decoder model, of which the decoder's tokens are then
    given to `Scores`; or None for a language model, whose tokens are its only input.

    A model with `start(**inputs) -> state` and `advance(tokens, state) -> (scores, state)` computes each
    token once, as long as a language model has room for it in its context. Other models are run on all
    tokens for each new one.
    """

    def __init__(self, model: nn.Module, precision: Precision, spec: DataSpec) -> None:
        self._model, self._precision, self._longest = model, precision, spec.input_shape[0] if spec.input_shape else 0
        self._call = caller(model)

    def __call__(self, inputs: Mapping[str, Tensor] | None) -> Scores:
        whole = Recomputed(self._outputs, inputs, self._longest if inputs is None else None)
        if not hasattr(self._model, "advance"):
            return whole
        cached = Cached(self._advance, self._started(inputs or {}))
        return cached if inputs is not None else UpTo(self._longest, cached, whole)

    @torch.inference_mode()
    def _outputs(self, inputs: Any) -> Any:
        with self._precision.forward():
            return self._call(map_tensors(self._precision.inputs, inputs))

    @torch.inference_mode()
    def _started(self, inputs: Mapping[str, Tensor]) -> Any:
        with self._precision.forward():
            return self._model.start(**map_tensors(self._precision.inputs, dict(inputs)))  # type: ignore[operator]

    @torch.inference_mode()
    def _advance(self, tokens: Tensor, state: Any) -> Any:
        with self._precision.forward():
            return self._model.advance(tokens.to(self._precision.device), state)  # type: ignore[operator]
