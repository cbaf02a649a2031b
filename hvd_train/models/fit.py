"""The sizes of the data for a model builder. A model that cannot take the data raises UserError."""

from __future__ import annotations

import math

from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError

TOKENS = "input_ids"
"""The name of the input of models of texts."""


def values(spec: DataSpec, model: str) -> int:
    """Return the number of values of one input, for a model that predicts classes or numbers."""
    if spec.task == "language" or spec.vocabularies:
        raise UserError(f"model '{model}' takes classification or regression data, not {_given(spec)}")
    return math.prod(spec.input_shape)


def observation(spec: DataSpec, model: str) -> int:
    """Return the number of values of one observation, for a model of an agent."""
    if spec.task != "control":
        raise UserError(f"model '{model}' takes the observations of an agent, not {_given(spec)}")
    return math.prod(spec.input_shape)


def image(spec: DataSpec, model: str, smallest: int) -> tuple[int, int, int]:
    """Return channels, height and width of the images. Neither side is shorter than `smallest`."""
    if len(spec.input_shape) != 3 or min(spec.input_shape[1:]) < smallest:
        side = f"of at least {smallest} x {smallest}"
        raise UserError(f"model '{model}' takes images (channels, height, width) {side}, not {_given(spec)}")
    channels, height, width = spec.input_shape
    return channels, height, width


def sequence(spec: DataSpec, model: str) -> int:
    """Return the number of values of one step, for a model of sequences.

    Sequences are (time, features), or spectra (channels, features, time).
    """
    if len(spec.input_shape) == 3:
        return spec.input_shape[0] * spec.input_shape[1]
    if len(spec.input_shape) != 2 or spec.input_shape[0] == 1 or spec.task == "language":
        raise UserError(
            f"model '{model}' takes sequences (time, features), or spectra (channels, features, time), not {_given(spec)}"
        )
    return spec.input_shape[1]


def length(spec: DataSpec, model: str) -> int:
    """Return the number of tokens in a sample, for a language model."""
    if spec.task != "language":
        raise UserError(f"model '{model}' takes language data, such as that of 'text', not {_given(spec)}")
    return spec.input_shape[0]


def length_of_pairs(spec: DataSpec, model: str) -> int:
    """Return the most tokens of a source or a target, for an encoder-decoder model."""
    if spec.task != "seq2seq":
        raise UserError(f"model '{model}' takes pairs of texts, such as those of 'translation', not {_given(spec)}")
    return spec.input_shape[0]


def tokens(spec: DataSpec, model: str) -> int:
    """Return the size of the vocabulary of texts, for a model that predicts classes or numbers of them."""
    if spec.task not in {"classification", "regression"} or TOKENS not in spec.vocabularies:
        raise UserError(f"model '{model}' takes texts, such as those of 'text_classification', not {_given(spec)}")
    return spec.vocabularies[TOKENS]


def ids(spec: DataSpec, model: str) -> tuple[int, int]:
    """Return the numbers of users and of items, for a model that recommends. Number 0 is unknown."""
    if spec.task not in ("regression", "ranking") or not {"user", "item"} <= spec.vocabularies.keys():
        raise UserError(f"model '{model}' takes users and items, such as those of 'ratings', not {_given(spec)}")
    return spec.vocabularies["user"], spec.vocabularies["item"]


def _given(spec: DataSpec) -> str:
    what = f"with {', '.join(spec.vocabularies)}" if spec.vocabularies else f"of shape {spec.input_shape}"
    return f"{spec.task} data {what}"
