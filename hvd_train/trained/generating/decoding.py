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
from hvd_train.trained.generating.library import LibraryScores, caches
from hvd_train.trained.generating.scores import Cached, Recomputed, Scores, UpTo


class Decoding:
    """Starts sequences of `model`, in the precision and on the device of its run.

    Inputs are a dict of the inputs of an encoder-decoder model, of which the decoder's tokens are then
    given to `Scores`; or None for a language model, whose tokens are its only input.

    A model with `start(**inputs) -> state` and `advance(tokens, state) -> (scores, state)`, and one of
    transformers, compute each token once, as long as a language model has room for it in its context.
    Other models are run on all tokens for each new one.
    """

    def __init__(self, model: nn.Module, precision: Precision, spec: DataSpec) -> None:
        self._model, self._precision, self._longest = model, precision, spec.input_shape[0] if spec.input_shape else 0
        self._call = caller(model)

    def __call__(self, inputs: Mapping[str, Tensor] | None) -> Scores:
        whole = Recomputed(self._outputs, inputs, self._longest if inputs is None else None)
        cached = self._cached(inputs)
        if cached is None:
            return whole
        return cached if inputs is not None else UpTo(self._longest, cached, whole)

    @torch.inference_mode()
    def _cached(self, inputs: Mapping[str, Tensor] | None) -> Scores | None:
        """Return scores with cached keys and values; None if the model keeps none."""
        placed = None if inputs is None else map_tensors(self._precision.inputs, dict(inputs))
        of_library = getattr(self._model, "inner", None)
        with self._precision.forward():
            if hasattr(self._model, "advance"):
                return Cached(self._advance, self._model.start(**placed or {}))  # type: ignore[operator]
            return _Within(self._precision, LibraryScores(of_library, placed)) if caches(of_library) else None

    @torch.inference_mode()
    def _outputs(self, inputs: Any) -> Any:
        with self._precision.forward():
            return self._call(map_tensors(self._precision.inputs, inputs))

    @torch.inference_mode()
    def _advance(self, tokens: Tensor, state: Any) -> Any:
        with self._precision.forward():
            return self._model.advance(tokens.to(self._precision.device), state)  # type: ignore[operator]


class _Within:
    """Calls scores in the precision and on the device of a run, without gradients."""

    def __init__(self, precision: Precision, scores: Scores) -> None:
        self._precision, self._scores = precision, scores

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        with self._precision.forward():
            return self._scores(tokens.to(self._precision.device), parents)
