"""Weights in int8 by torchao; layers compute in float32."""

from __future__ import annotations

from hvd_train.trained.exporting.int8_module import Int8Module
from hvd_train.trained.exporting.quantizer import ModuleQuantizer


def create() -> ModuleQuantizer:
    return Int8Module(split=True, dynamic=False)
