"""Layers compute in int8 by onnxruntime; ranges of inputs are those of training samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_train.trained.exporting.calibration import Calibration
from hvd_train.trained.exporting.quantizer import OnnxQuantizer


class Int8Static:
    """Quantizes linear and convolutional layers as QuantizeLinear and DequantizeLinear (QDQ)."""

    def quantize(self, source: Path, target: Path, calibration: Calibration) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        from hvd_train.trained.exporting.onnx_products import OPTIONS, quantize_products

        def quantized(prepared: Path, made: Path) -> None:
            quantize_static(
                prepared,
                made,
                _Batches(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": True},
                **OPTIONS,
            )

        quantize_products(source, target, quantized)


class _Batches:
    """Yields the batches as onnxruntime asks for them."""

    def __init__(self, calibration: Calibration) -> None:
        self._feeds = iter(calibration.feeds())

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def create() -> OnnxQuantizer:
    return Int8Static()
