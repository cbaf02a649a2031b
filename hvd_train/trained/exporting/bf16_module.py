"""Computes a module in bfloat16, behind inputs and outputs in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.data.nesting import map_tensors
from hvd_train.errors import UserError
from hvd_train.trained.exporting.calibration import Calibration


class Bf16Module:
    """Converts the parameters and buffers of a module to bfloat16."""

    @torch.no_grad()
    def quantize_(self, model: nn.Module, calibration: Calibration) -> None:
        model.bfloat16()
        model.register_forward_pre_hook(_inputs, with_kwargs=True)
        model.register_forward_hook(_outputs)
        try:
            calibration.call(model, calibration.batches[0])
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--quantize: the model does not compute in bfloat16: {reason}") from error


def _inputs(model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return _floats(arguments, torch.bfloat16), _floats(options, torch.bfloat16)


def _outputs(model: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> Any:
    return _floats(outputs, torch.float32)


def _floats(value: Any, dtype: torch.dtype) -> Any:
    """Return the nesting `value` with its floating point tensors in `dtype`."""

    def converted(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    return map_tensors(converted, value)
