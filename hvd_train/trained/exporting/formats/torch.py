"""Program of torch.export, model.pt2, which needs torch and no code of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.trained.exporting.format import Runner
from hvd_train.trained.exporting.program import Shapes, Source, sizes


class Torch:
    """Writes archives of tensors and JSON, in which nothing is pickled."""

    quantized_by = "torch"
    file = "model.pt2"

    def write(self, source: Source, folder: Path) -> Shapes:
        program = replace(source, module=_of_plain_tensors(source.module)).trace("torch")
        shapes = sizes(program, source)
        program.example_inputs = None  # the archive would hold them pickled
        torch.export.save(program, folder / self.file)
        return shapes

    def read(self, folder: Path, source: Source, threads: int) -> Runner:
        return runner(torch.export.load(folder / self.file).module(), threads)

    def loading(self, source: Source, *, quantized: bool) -> str:
        return (
            "import torch\n\n"
            f'model = torch.export.load("{self.file}").module()  # only a file that you trust\n'
            f"outputs = model({', '.join(source.binding.inputs)})"
        )


def _of_plain_tensors(module: nn.Module) -> nn.Module:
    """Return `module`, or a copy whose quantized weights are plain tensors, which need no class to be loaded."""
    if all(type(p.detach()) is Tensor for p in module.parameters()):
        return module
    from torch._functorch._aot_autograd.subclass_parametrization import unwrap_tensor_subclass_parameters

    return unwrap_tensor_subclass_parameters(copy.deepcopy(module))


def runner(model: Callable[..., Any], threads: int) -> Runner:
    """Return a runner that calls `model` with `threads` threads of torch, without autocast."""

    def run(tensors: tuple[Tensor, ...]) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                outputs = model(*tensors)
        finally:
            torch.set_num_threads(before)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def create() -> Torch:
    return Torch()
