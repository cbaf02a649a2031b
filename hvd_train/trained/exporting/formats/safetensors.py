"""Weights only, model.safetensors, for code that builds the same model."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import nn

from hvd_train.errors import UserError
from hvd_train.state import model_state, packing
from hvd_train.trained.exporting import int8_state
from hvd_train.trained.exporting.format import Runner
from hvd_train.trained.exporting.formats.torch import runner
from hvd_train.trained.exporting.program import Shapes, Source, declared

_SCALES = """\
for name in [name for name in state if name + ".scale" in state]:
    state[name] = state[name].float() * state.pop(name + ".scale")
"""
"""Code that makes float32 weights of int8 weights, as `int8_state.restored` does."""


class Safetensors:
    """Writes the parameters and buffers under the names of `state_dict`."""

    quantized_by = "safetensors"
    file = "model.safetensors"

    def write(self, source: Source, folder: Path) -> Shapes:
        state = int8_state.stored(source.module.state_dict())
        odd = next((name for name, value in state.items() if not model_state.is_plain(value)), None)
        if odd is not None:
            raise UserError(f"--to safetensors: '{odd}' is no plain tensor; take --to torch")
        packing.to_file(state, folder / self.file)
        return declared(source)

    def read(self, folder: Path, source: Source, threads: int) -> Runner:
        model = source.rebuild()
        model.load_state_dict(int8_state.restored(safetensors.torch.load_file(folder / self.file)))
        return runner(lambda *tensors: tuple(source.binding.flat(source.binding.call(model, tensors))), threads)

    def loading(self, source: Source, *, quantized: bool) -> str:
        return (
            f"import safetensors.torch\nimport torch\n\nmodel = {_expression(source.module)}\n"
            f'state = safetensors.torch.load_file("{self.file}")\n'
            f"{_SCALES if quantized else ''}"
            "model.load_state_dict(state)\n"
            f"outputs = model.eval()({', '.join(source.binding.inputs)})"
        )


def _expression(model: nn.Module) -> str:
    """Return code that builds the model, if it consists of torch's layers, or a description of it."""
    if all(type(inner).__module__.startswith("torch.nn.") for inner in model.modules()):
        return _call(model, "")
    kind = type(model)
    return f"...  # {kind.__module__}.{kind.__qualname__}, built as section `model` of config.json says"


def _call(module: nn.Module, indent: str) -> str:
    """Return the constructor of a layer; torch shows most layers with their arguments."""
    name = f"torch.nn.{type(module).__name__}"
    if not isinstance(module, nn.Sequential):
        return f"{name}({module.extra_repr()})"
    inner = "".join(f"{indent}    {_call(layer, indent + '    ')},\n" for layer in module)
    return f"{name}(\n{inner}{indent})"


def create() -> Safetensors:
    return Safetensors()
