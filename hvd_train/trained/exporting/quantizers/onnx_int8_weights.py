"""Weights in int8, which a runtime expands when it loads the file; layers compute in float32."""

from __future__ import annotations

from pathlib import Path

from hvd_train.errors import UserError
from hvd_train.trained.exporting.calibration import Calibration
from hvd_train.trained.exporting.quantizer import OnnxQuantizer


class Int8Weights:
    """Stores embeddings and the weights of linear and convolutional layers in int8."""

    def quantize(self, source: Path, target: Path, calibration: Calibration) -> None:
        import onnx

        from hvd_train.trained.exporting.onnx_weights import SMALLEST, store_int8_

        model = onnx.load(source)
        if not store_int8_(model):
            raise UserError(f"--quantize: the model has no weight of {SMALLEST} elements or more")
        onnx.save(model, target)


def create() -> OnnxQuantizer:
    return Int8Weights()
