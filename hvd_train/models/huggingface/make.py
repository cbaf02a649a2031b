"""Make the model that the options of `huggingface` describe."""

from __future__ import annotations

from typing import Any

from hvd_train.config.lora_section import LoraSection
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.huggingface import lora as low_rank
from hvd_train.models.huggingface import sizes
from hvd_train.models.huggingface.adapter import Adapter
from hvd_train.models.huggingface.library import library
from hvd_train.models.huggingface.source import Fresh, Pretrained
from hvd_train.models.huggingface.tasks import TASKS, Task


def make(
    spec: DataSpec,
    task: str,
    pretrained: str | None,
    options: dict[str, Any] | None,
    lora: LoraSection | None,
    *,
    pickled: bool,
    gradient_checkpointing: bool,
) -> Adapter:
    """Return the model; UserError if it cannot be read or does not fit the task or the data."""
    of = TASKS[task]
    source = Fresh(options or {}) if pretrained is None else Pretrained.at(pretrained, pickled=pickled)
    config = source.config()
    _check_class(config, task, of)
    sizes.fit_(config, spec, task, of, fresh=pretrained is None, given=frozenset(options or ()))
    model = source.model(of, config)
    sizes.check(model, spec)
    if lora is not None:
        low_rank.apply_(model, lora, trains_head=of.head == "classes")
    if gradient_checkpointing:
        _checkpoint(model)
    return Adapter(model, task)


def _check_class(config: Any, task: str, of: Task) -> None:
    if type(config) not in getattr(library(), of.auto)._model_mapping:
        raise UserError(f"model.task: transformers has no model of type '{config.model_type}' for '{task}'")


def _checkpoint(model: Any) -> None:
    # Earlier versions of the library have another name for it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.gradient_checkpointing: transformers has none for {type(model).__name__}; leave it out"
        ) from error
