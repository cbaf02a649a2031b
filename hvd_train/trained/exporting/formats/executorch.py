"""Program of ExecuTorch with XNNPACK, model.pte, for phones and boards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.trained.exporting.format import Runner, package
from hvd_train.trained.exporting.program import Shapes, Source, sizes

MOST = 32
"""The largest batch, for which ExecuTorch plans the memory."""


class ExecuTorch:
    """Lowers the program of torch.export to XNNPACK, and to portable operators for the rest."""

    quantized_by = "executorch"
    file = "model.pte"

    def write(self, source: Source, folder: Path) -> Shapes:
        exir, xnnpack = _package("exir"), _package("backends.xnnpack.partition.xnnpack_partitioner")
        program = source.trace("executorch", MOST)
        try:
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
            content: bytes = lowered.to_executorch().buffer
        except Exception as error:
            text = " ".join(str(error).partition("\n")[0].split())
            raise UserError(f"--to executorch: it cannot lower the model: {text}") from error
        (folder / self.file).write_bytes(content)
        return sizes(program, source)

    def read(self, folder: Path, source: Source, threads: int) -> Runner:
        _package("extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)  # there is no other way
        program = _package("runtime").Runtime.get().load_program(folder / self.file)
        method = program.load_method("forward")

        def run(tensors: tuple[Tensor, ...]) -> list[Tensor]:
            parts = [[x.clone() for x in method.execute(list(part))] for part in _parts(tensors, source)]
            return [torch.cat(values) if values[0].dim() else values[0] for values in zip(*parts, strict=True)]

        return run

    def loading(self, source: Source, *, quantized: bool) -> str:
        return (
            "from executorch.runtime import Runtime\n\n"
            f'model = Runtime.get().load_program("{self.file}").load_method("forward")\n'
            f"outputs = model.execute([{', '.join(source.binding.inputs)}])  # at most {MOST} samples"
        )


def _parts(tensors: tuple[Tensor, ...], source: Source) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs in batches of at most `MOST` samples."""
    divided = [x.split(MOST) if axes else repeat(x) for x, axes in zip(tensors, source.axes, strict=True)]
    return zip(*divided, strict=False)


def _package(name: str) -> ModuleType:
    return package(f"executorch.{name}", "executorch", "executorch")


def create() -> ExecuTorch:
    _package("exir")  # before data is read
    return ExecuTorch()
