"""Scores of the models of the library transformers, with the library's cache of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hvd_train.compute.loss import wide
from hvd_train.data.files import import_extra
from hvd_train.trained.generating.scores import DECODER, rows


def caches(model: Any) -> bool:
    """Return True if `model` is one of the library that generates."""
    return model is not None and hasattr(model, "prepare_inputs_for_generation") and callable(model.get_decoder)


class LibraryScores:
    """Gives the model the new tokens only, and the encoded source to a model that has an encoder.

    `inputs` are those of the encoder; None for a language model.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor] | None) -> None:
        library = import_extra("transformers", "huggingface")
        self._model, self._known = model, 0
        self._cache = library.DynamicCache()
        self._inputs: dict[str, Any] = {}
        if inputs is not None:
            self._cache = library.EncoderDecoderCache(self._cache, library.DynamicCache())
            encoded = model.get_encoder()(**inputs, return_dict=True).last_hidden_state
            self._inputs = {"encoder_outputs": (encoded,), "attention_mask": inputs["attention_mask"]}
        # Versions of the library give it one of two names.
        self._name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        if parents is not None:
            self._inputs = rows(self._inputs, parents)
            self._cache.reorder_cache(parents.to(tokens.device))
        new = {DECODER if self._inputs else "input_ids": tokens[:, self._known :], self._name: self._cache}
        self._known = tokens.shape[1]
        return wide(self._model(**self._inputs, **new, use_cache=True, return_dict=True).logits[:, -1])
