"""ONNX, model.onnx, for onnxruntime and other runtimes without torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.trained.exporting.format import Runner, package
from hvd_train.trained.exporting.program import Shapes, Source, sizes


class Onnx:
    """Writes the program of torch.export as ONNX, by onnxscript."""

    quantized_by = "onnx"
    file = "model.onnx"

    def write(self, source: Source, folder: Path) -> Shapes:
        program = source.trace("onnx")
        names = source.binding
        try:
            with _quiet():
                made = torch.onnx.export(
                    program,
                    source.example,
                    input_names=list(names.inputs),
                    output_names=list(names.outputs),
                    dynamic_shapes=(source.axes,),
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"--to onnx: {' '.join(str(error.__cause__ or error).split())}") from error
        assert made is not None
        made.save(folder / self.file)
        return sizes(program, source)

    def read(self, folder: Path, source: Source, threads: int) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(folder / self.file, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def run(tensors: tuple[Tensor, ...]) -> list[Tensor]:
            feed = dict(zip(source.binding.inputs, (x.numpy() for x in tensors), strict=True))
            outputs = session.run(None, {name: feed[name] for name in names})
            return [torch.from_numpy(x) for x in outputs]

        return run

    def loading(self, source: Source, *, quantized: bool) -> str:
        feed = ", ".join(f'"{name}": {name}' for name in source.binding.inputs)
        return (
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{self.file}")\n'
            f"outputs = session.run(None, {{{feed}}})  # numpy arrays"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter prints of its steps and of packages that are not installed."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def create() -> Onnx:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name, "onnx", "export")  # before data is read
    return Onnx()
