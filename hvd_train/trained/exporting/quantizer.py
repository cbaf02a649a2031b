"""The contract of a quantizer: it stores weights, or computes, in fewer bits.

A quantizer is a file in `hvd_train/trained/exporting/quantizers`. Its name is its backend and its
kind: `torch_int8_weights`, `onnx_int8_dynamic`. Its `create(**options)` returns a `ModuleQuantizer`
if the backend is torch, and an `OnnxQuantizer` if it is onnx. The format of the export decides the
backend (`Format.quantized_by`), and `--quantize int8-dynamic` the kind.

A quantizer raises UserError, one sentence that begins with `--quantize:`, for a model that it
cannot quantize, such as one without a layer of its kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.trained.exporting.calibration import Calibration

PACKAGE = "hvd_train.trained.exporting.quantizers"


class ModuleQuantizer(Protocol):
    """Quantizes a module before it is exported."""

    def quantize_(self, model: nn.Module, calibration: Calibration) -> None:
        """Change `model` in place, so that `torch.export` takes it.

        It is a copy in eval mode, on the CPU, with floats in float32. It takes such inputs afterwards
        too, and returns outputs in float32.
        """


class OnnxQuantizer(Protocol):
    """Quantizes a file that was exported."""

    def quantize(self, source: Path, target: Path, calibration: Calibration) -> None:
        """Write the quantized model of the ONNX file `source` to `target`."""


def kinds(backend: str) -> list[str]:
    """Return what `--quantize` may be for the formats that `backend` quantizes."""
    prefix = f"{backend}_"
    return [name.removeprefix(prefix).replace("_", "-") for name in plugins.names(PACKAGE) if name.startswith(prefix)]


def create(backend: str, kind: str, to: str) -> Any:
    """Return the quantizer of `kind` for the format `to`; UserError if there is none."""
    known = kinds(backend)
    if kind not in known:
        choices = ", ".join(known) or "none"
        raise UserError(f"--quantize: '{kind}' is not made for --to {to} (choices there: {choices})")
    return plugins.create(PACKAGE, f"{backend}_{kind.replace('-', '_')}")
