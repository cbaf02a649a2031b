"""Weights in int8, each with the scales of its output channels as NAME.scale."""

from __future__ import annotations

from hvd_train.trained.exporting.int8_module import Int8Module
from hvd_train.trained.exporting.quantizer import ModuleQuantizer


def create() -> ModuleQuantizer:
    return Int8Module(split=False, dynamic=False)
