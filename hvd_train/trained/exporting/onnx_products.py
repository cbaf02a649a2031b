"""Quantizes the products of an ONNX model by onnxruntime, and stores its other weights in int8."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

from hvd_train.errors import UserError
from hvd_train.trained.exporting.onnx_weights import fold_transposes_, share_tables_, store_int8_

OPTIONS: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul", "Gemm", "Conv"],
    "per_channel": True,
    # With int8 weights, sums of two products saturate at 16 bits on x86 without VNNI.
    "weight_type": QuantType.QUInt8,
}
_MADE = {"MatMulInteger", "ConvInteger", "DequantizeLinear"}


def quantize_products(source: Path, target: Path, quantize: Callable[[Path, Path], None]) -> None:
    """Write the model `source` to `target`, with products and convolutions by `quantize`.

    `quantize(prepared, target)` is a call of onnxruntime. Raise UserError if it finds none.
    """
    with TemporaryDirectory(prefix="ddl-quantize-") as folder, _quiet():
        whole, prepared = Path(folder, "whole.onnx"), Path(folder, "prepared.onnx")
        model = onnx.load(source)
        folded = fold_transposes_(model)
        onnx.save(model, whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize(prepared, target)
    made = onnx.load(target)
    if not any(node.op_type in _MADE for node in made.graph.node):
        raise UserError("--quantize: the model has no linear or convolutional layer")
    share_tables_(made, folded)
    store_int8_(made)
    onnx.save(made, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what onnxruntime's quantizer logs of its steps."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
