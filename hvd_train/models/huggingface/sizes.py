"""Fit the configuration of a model to the data, and refuse data that the model cannot take."""

from __future__ import annotations

from typing import Any

from torch import nn

from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.huggingface.tasks import Task

TOKENS = "input_ids"


def fit_(config: Any, spec: DataSpec, task: str, of: Task, *, fresh: bool, given: frozenset[str]) -> None:
    """Set the sizes of the head, and of the vocabulary of a `fresh` model, by the data.

    `given` are the options that the user wrote. Raise UserError for data that the task cannot take.
    """
    _check_task(spec, task, of)
    config.use_cache = False
    tokens = vocabulary(spec)
    if fresh and tokens and "vocab_size" not in given and task != "speech-ctc":
        config.vocab_size = tokens
    if task == "speech-ctc":
        config.ctc_loss_reduction = "mean"
    if of.head == "classes" and spec.outputs and spec.task != "other":
        setattr(config, "vocab_size" if task == "speech-ctc" else "num_labels", spec.outputs)
    if task == "sequence-classification":
        config.problem_type = "regression" if spec.task == "regression" else None
    if fresh and task == "image-classification" and len(spec.input_shape) == 3:
        _fit_image(config, spec.input_shape, given)


def vocabulary(spec: DataSpec) -> int:
    """Return the number of different tokens of the inputs; 0 if the data does not say it."""
    return spec.vocabularies.get(TOKENS, spec.outputs if spec.task == "language" else 0)


def check(model: Any, spec: DataSpec) -> None:
    """Raise UserError for tokens beyond the embedding, and for inputs longer than the positions."""
    tokens, embedding = vocabulary(spec), _embedding(model)
    if embedding is not None and tokens > embedding.num_embeddings:
        raise UserError(
            f"model: the embedding has {embedding.num_embeddings} tokens, and the tokenizer of the data has {tokens}; take the "
            "tokenizer of the model, or a model for this vocabulary"
        )
    is_text = bool(tokens) and len(spec.input_shape) == 1
    for name, module in model.named_modules():
        if is_text and _is_positions(name, module) and _places(module) < spec.input_shape[0]:
            raise UserError(
                f"model: it has {_places(module)} positions ('{name}'), and the texts of the data have up to "
                f"{spec.input_shape[0]} tokens; set data.length to at most {_places(module)}"
            )


def _check_task(spec: DataSpec, task: str, of: Task) -> None:
    takes = {
        "image-classification": "images (channels, height, width)" * (len(spec.input_shape) != 3),
        "audio-classification": "waveforms (1, time)" * (len(spec.input_shape) not in {0, 2}),
        "causal-lm": "tokens, such as those of 'text'" * (spec.task not in {"language", "other"}),
    }.get(task)
    if takes and spec.task != "other":
        raise UserError(f"model.task: '{task}' takes {takes}, not {spec.task} data of shape {spec.input_shape}")
    if task.startswith("audio") and len(spec.input_shape) == 2 and spec.input_shape[0] != 1:
        raise UserError(
            f"model.task: '{task}' takes sounds of one channel, not of {spec.input_shape[0]}; set data.mono: true"
        )
    if of.head == "classes" and spec.task == "control":
        raise UserError(f"model.task: '{task}' takes samples, not the observations of an agent")


def _fit_image(config: Any, shape: tuple[int, ...], given: frozenset[str]) -> None:
    channels, height, width = shape
    for name, value in (("num_channels", channels), ("image_size", height if height == width else [height, width])):
        if hasattr(config, name) and name not in given:
            setattr(config, name, value)


def _embedding(model: Any) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def _is_positions(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    return isinstance(module, nn.Embedding) and last in {"position_embeddings", "wpe", "embed_positions"}


def _places(positions: Any) -> int:
    """Return the number of tokens that `positions` has places for. Some begin after the padding."""
    before = 0 if positions.padding_idx is None else positions.padding_idx + 1
    return int(positions.num_embeddings - max(before, getattr(positions, "offset", 0)))
