"""Low-rank updates of linear layers, by the library peft. Hu et al., arXiv 2106.09685."""

from __future__ import annotations

import importlib
from typing import Any

from hvd_train.config.lora_section import LoraSection
from hvd_train.errors import UserError
from hvd_train.models.huggingface.library import hidden, reason


def apply_(model: Any, section: LoraSection, *, trains_head: bool) -> None:
    """Freeze `model`, and give its layers updates that are trained; with `trains_head` its head, too.

    Raise UserError if peft is missing, or if no layer fits.
    """
    try:
        with hidden("torchao"):
            peft = importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise UserError(f"model.lora needs {error.name}, which is not installed; run pip install peft") from error
    head = [p for name, p in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    options = peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.targets or None,
    )
    try:
        with hidden("torchao"):
            peft.inject_adapter_in_model(options, model)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.lora.targets: {reason(error)}") from error
    for parameter in head if trains_head else ():
        parameter.requires_grad_(True)
