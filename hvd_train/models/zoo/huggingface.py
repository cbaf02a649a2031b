"""A model of the library transformers: pretrained, from a folder or the hub, or with random weights."""

from __future__ import annotations

from torch import nn

from hvd_train.config.options import Annotated, Any, Literal, Lora
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.models.huggingface.make import make


def create(
    spec: DataSpec,
    *,
    task: Annotated[
        Literal[
            "sequence-classification",
            "token-classification",
            "causal-lm",
            "masked-lm",
            "seq2seq",
            "image-classification",
            "audio-classification",
            "speech-ctc",
        ],
        "what the model predicts; its head is sized by the data",
    ],
    pretrained: Annotated[
        str | None, "folder with config.json and model.safetensors, or a name on the hub; exclusive with config"
    ] = None,
    config: Annotated[
        dict[str, Any] | None,
        "random weights: model_type, such as bert, and what differs from the library's configuration of this type",
    ] = None,
    pickled: Annotated[bool, "read pytorch_model.bin in place of .safetensors; only from those whom you trust"] = False,
    lora: Lora = None,
    gradient_checkpointing: Annotated[
        bool, "compute activations again in the backward pass, which saves memory and takes about a third longer"
    ] = False,
) -> nn.Module:
    """Raise UserError for a model that cannot be read, does not fit the task, or does not take the data."""
    if (pretrained is None) == (config is None):
        raise UserError("model: give 'pretrained' or 'config', one of them")
    if config is not None and pickled:
        raise UserError("model.pickled: there are no weights to read; leave pickled out")
    return make(spec, task, pretrained, config, lora, pickled=pickled, gradient_checkpointing=gradient_checkpointing)
