"""Weights and buffers in bfloat16."""

from __future__ import annotations

from hvd_train.trained.exporting.bf16_module import Bf16Module
from hvd_train.trained.exporting.quantizer import ModuleQuantizer


def create() -> ModuleQuantizer:
    return Bf16Module()
