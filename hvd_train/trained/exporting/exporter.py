"""Writes the variants of an export, reads them back and measures them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.agree import together
from hvd_train.comm.communicator import Communicator
from hvd_train.compute.loss import LOSS
from hvd_train.compute.metrics.accuracy import Accuracy
from hvd_train.compute.metrics.meter import Value
from hvd_train.config.schema import Config
from hvd_train.trained.exporting import latency
from hvd_train.trained.exporting.format import Format, Runner
from hvd_train.trained.exporting.formats.torch import runner
from hvd_train.trained.exporting.inputs import Inputs
from hvd_train.trained.exporting.judge import Judge
from hvd_train.trained.exporting.latency import Latency
from hvd_train.trained.exporting.program import Shapes, Source
from hvd_train.trained.exporting.sharing import on_every_rank
from hvd_train.trained.exporting.verdict import Metric, Row
from hvd_train.trained.restore import Trained
from hvd_train.training.evaluation import held_out_part

ORIGINAL, PLAIN = "original", "fp32"
Times = dict[str, list[Latency]]


@dataclass(frozen=True)
class Comparison:
    """How the variants compare with the original on held-out samples of all ranks."""

    rows: list[Row]
    """The original, then the variants."""
    metric: Metric | None
    """What decides; None if no metric of the run is a number that has a better side."""
    samples: int


@dataclass(frozen=True)
class Exporter:
    """A model, its samples, and the format that it is exported in."""

    comm: Communicator
    trained: Trained
    inputs: Inputs
    source: Source
    form: Format
    folder: Path
    """Each variant has a folder in it, which is called as the variant."""

    def write(self, quantize: str | None, quantizer: Any) -> Shapes:
        """Write the model as it is and, by `quantizer`, quantized. Return the shapes of the inputs."""
        plain = self._new_folder(PLAIN)
        shapes = self.form.write(self.source, plain)
        if quantize is None:
            return shapes
        folder, calibration = self._new_folder(quantize), self.inputs.calibration(self.source.binding)
        if self.form.quantized_by == "onnx":
            quantizer.quantize(plain / self.form.file, folder / self.form.file, calibration)
            return shapes
        module = copy.deepcopy(self.source.module)
        quantizer.quantize_(module, calibration)
        return self.form.write(replace(self.source, module=module), folder)

    def compare(self, labels: list[str], config: Config, seconds: float) -> Comparison:
        """Read the variants `labels` and compare them with the original; collective.

        Each case of the latencies takes `seconds`.
        """
        with on_every_rank(self.folder, self.comm) as folder:
            runners = together(self.comm, partial(self._runners, labels, folder, latency.cores()))
            judge = Judge(self.trained, self.inputs, self.source.binding, runners)
            with torch.no_grad():
                test = self.trained.built.data.test
                own = held_out_part(test, config.train.eval_samples, self.comm)
                self.trained.execution.evaluate(test, own, judge.observe)
            times = self._latencies(labels, folder, seconds) if self.comm.rank == 0 else {}
            rows = self._rows(judge, folder, times)
        return Comparison(rows, _deciding(config, judge, rows[0].metrics), judge.total(self.comm))

    def _new_folder(self, label: str) -> Path:
        made = self.folder / label
        made.mkdir()
        return made

    def _runners(self, labels: list[str], folder: Path, threads: int) -> dict[str, Runner]:
        return {label: self.form.read(folder / label, self.source, threads) for label in labels}

    def _rows(self, judge: Judge, folder: Path, times: Times) -> list[Row]:
        comm = self.comm
        rows = [Row(ORIGINAL, 0, judge.original(comm), times.get(ORIGINAL, []))]
        for one in judge.candidates:
            size, own = _bytes(folder / one.label), times.get(one.label, [])
            rows.append(Row(one.label, size, one.metrics(comm), own, **one.difference.total(comm)._asdict()))
        return rows

    def _latencies(self, labels: list[str], folder: Path, seconds: float) -> Times:
        times: Times = {label: [] for label in (ORIGINAL, *labels)}
        batches = {number: self.inputs.held_out(number) for number in latency.BATCHES}
        for number, threads in latency.cases():
            tensors = self.source.binding.tensors(batches[number])
            runners = {ORIGINAL: self._original(threads), **self._runners(labels, folder, threads)}
            calls = {label: partial(run, tensors) for label, run in runners.items()}
            for label, measured in latency.measure(calls, seconds).items():
                times[label].append(latency.of_times(measured, number, threads))
        return times

    def _original(self, threads: int) -> Runner:
        """Return a runner of the module itself, in float32."""
        module, binding = self.source.module, self.source.binding

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(binding.flat(binding.call(module, tensors)))

        return runner(call, threads)


def _deciding(config: Config, judge: Judge, metrics: Mapping[str, Value]) -> Metric | None:
    """Return the metric of the best checkpoint, else the accuracy, else the loss.

    Nothing can be compared with a loss of 0, which agents have whose actions are numbers.
    """
    best = config.checkpoint.best
    for name in (*([best.metric] if best else []), Accuracy.name, LOSS):
        better = judge.higher_is_better.get(name)
        if better is not None and isinstance(metrics.get(name), float) and metrics[name] != 0:
            return Metric(name, better)
    return None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
