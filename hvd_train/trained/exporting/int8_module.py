"""Replaces the weights of a module by int8 weights of torchao."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from hvd_train.errors import UserError, install_remedy
from hvd_train.trained.exporting.calibration import Calibration

KINDS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Int8Module:
    """Stores the weights of linear, convolutional and embedding layers in int8.

    A weight that several layers share stays one.
    """

    def __init__(self, *, dynamic: bool, split: bool) -> None:
        """If `dynamic`, linear layers round their inputs to int8 too.

        If `split`, int8 values and scales become parameters of their own, which torch.export stores
        without pickle and without this class. Raise UserError if torchao is not installed.
        """
        try:
            from hvd_train.trained.exporting import int8_weight
        except ImportError as error:
            raise UserError(
                f"--quantize: int8 needs torchao, which is not installed; {install_remedy('export')}"
            ) from error
        self._quantized = partial(int8_weight.quantized, dynamic=dynamic)
        self._split = split

    @torch.no_grad()
    def quantize_(self, model: nn.Module, calibration: Calibration) -> None:
        layers = [module for module in model.modules() if _is_quantized(module)]
        if not layers:
            raise UserError("--quantize: the model has no linear, convolutional or embedding layer")
        weights = dict.fromkeys(layer.get_parameter("weight") for layer in layers)
        made = {weight: nn.Parameter(self._quantized(weight), requires_grad=False) for weight in weights}
        for layer in layers:
            layer.weight = made[layer.get_parameter("weight")]
        if self._split:
            from torchao.utils import unwrap_tensor_subclass

            unwrap_tensor_subclass(model)


def _is_quantized(module: nn.Module) -> bool:
    """Return True for layers that own their weight.

    The output layer of nn.MultiheadAttention hands its weight out, and weight_norm computes it.
    """
    if all(name != "weight" for name, _ in module.named_parameters(recurse=False)):
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None
    return isinstance(module, KINDS) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
