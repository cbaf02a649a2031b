"""Write a model in another format, read it back, and compare it with the original."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from hvd_train.comm.agree import together
from hvd_train.config.options import Annotated, Fraction, NonNegativeFloat, PositiveFloat
from hvd_train.config.schema import Config
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.slim.quantization import plain_
from hvd_train.trained.exporting import format as formats
from hvd_train.trained.exporting import quantizer
from hvd_train.trained.exporting.exporter import PLAIN, Comparison, Exporter
from hvd_train.trained.exporting.inputs import Inputs
from hvd_train.trained.exporting.latency import cores
from hvd_train.trained.exporting.program import Shapes, Source, source_of
from hvd_train.trained.exporting.pruning import prune_
from hvd_train.trained.exporting.verdict import judge
from hvd_train.trained.restore import Trained, restore


@dataclass(frozen=True)
class Export:
    """Writes the model as it is and, if asked for, quantized, and keeps one of them."""

    to: str
    quantize: str | None
    prune: float | None
    max_loss: float | None
    seconds: float

    def run(self, context: TaskContext) -> dict[str, Any]:
        form, comm = formats.create(self.to), context.comm
        made = self.quantize and quantizer.create(form.quantized_by, self.quantize, self.to)
        trained = restore(replace(context, config=_on_cpu(context.config)))
        plain_(trained.built.model)
        inputs = Inputs(trained.built.data, context.config.data.label_key)
        source = together(comm, partial(self._source, trained, inputs))
        exporter = Exporter(comm, trained, inputs, source, form, context.folder)
        shapes: Shapes = together(comm, partial(exporter.write, self.quantize, made) if comm.rank == 0 else dict)
        labels = [PLAIN, *([self.quantize] if self.quantize else [])]
        compared = exporter.compare(labels, context.config, self.seconds)
        if comm.rank:
            return {}
        return self._result(context.folder, exporter, shapes, compared)

    def _source(self, trained: Trained, inputs: Inputs) -> Source:
        source = source_of(trained.built.model, inputs, language=trained.built.data.spec.task == "language")
        if self.prune is not None:
            prune_(source.module, self.prune)
        return source

    def _result(self, folder: Path, exporter: Exporter, shapes: Shapes, compared: Comparison) -> dict[str, Any]:
        """Keep the variant that the verdict names, and return what the card says."""
        if self.max_loss is not None and compared.metric is None:
            raise UserError("--max-loss: no metric of the run says which of two values is better; leave it out")
        verdict = judge(compared.rows, compared.metric, self.max_loss)
        _keep(folder, verdict.kept, [row.label for row in compared.rows[1:]])
        source = exporter.source
        parameters = list(source.module.parameters())
        return {
            "format": self.to,
            "quantize": self.quantize,
            "prune": self.prune,
            "kept": verdict.kept,
            "verdict": verdict.text,
            "metric": compared.metric and compared.metric.name,
            "rows": [asdict(row) for row in compared.rows],
            "samples": compared.samples,
            "compared": "actions" if "agent" in exporter.trained.built.data.preprocessing else "classes",
            "parameters": sum(p.numel() for p in parameters),
            "zeros": sum(int((p == 0).sum()) for p in parameters),
            "inputs": _described(shapes, source.example),
            "outputs": _described(source.outputs, source.results),
            "machine": f"{platform.machine()}, {cores()} CPUs",
            "loading": exporter.form.loading(source, quantized=verdict.kept == self.quantize),
        }


def _keep(folder: Path, kept: str | None, labels: list[str]) -> None:
    """Move the files of the variant `kept` to `folder`, and delete the folders of variants."""
    if kept is not None:
        for path in (folder / kept).iterdir():
            path.rename(folder / path.name)
    for label in labels:
        shutil.rmtree(folder / label)


def _described(shapes: Shapes, tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    pairs = zip(shapes.items(), tensors, strict=True)
    return [
        {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(shape)} for (name, shape), x in pairs
    ]


def _on_cpu(config: Config) -> Config:
    """Return the configuration with the device on which exports are judged."""
    return config.model_copy(update={"train": config.train.model_copy(update={"device": "cpu"})})


def create(
    *,
    to: Annotated[str, "format: a file in trained/exporting/formats"],
    quantize: Annotated[str | None, "kind of a quantizer in trained/exporting/quantizers"] = None,
    prune: Annotated[Fraction | None, "share of the weights to set to zero"] = None,
    max_loss: Annotated[NonNegativeFloat | None, "points that the metric may lose"] = None,
    seconds: Annotated[PositiveFloat, "seconds that each case of the latencies takes"] = 1.0,
) -> Export:
    return Export(to, quantize, prune, max_loss, seconds)
