"""Layers compute in int8 by onnxruntime; ranges of inputs are those of each call."""

from __future__ import annotations

from pathlib import Path

from hvd_train.trained.exporting.calibration import Calibration
from hvd_train.trained.exporting.quantizer import OnnxQuantizer


class Int8Dynamic:
    """Quantizes linear and convolutional layers; an input has one range in each call."""

    def quantize(self, source: Path, target: Path, calibration: Calibration) -> None:
        from onnxruntime.quantization import quantize_dynamic

        from hvd_train.trained.exporting.onnx_products import OPTIONS, quantize_products

        quantize_products(source, target, lambda prepared, made: quantize_dynamic(prepared, made, **OPTIONS))


def create() -> OnnxQuantizer:
    return Int8Dynamic()
