"""Compares exports with the original model on held-out samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import caller, scores
from hvd_train.compute.metrics.layout import classes_last
from hvd_train.compute.metrics.loss import MeanLoss
from hvd_train.compute.metrics.meter import Meter, Value
from hvd_train.data.batch import Batch
from hvd_train.trained.exporting.binding import Binding
from hvd_train.trained.exporting.format import Runner
from hvd_train.trained.exporting.inputs import Inputs
from hvd_train.trained.restore import Trained


class Total(NamedTuple):
    """How far the outputs for all samples are from those of the original."""

    difference: float
    """The largest absolute difference."""
    magnitude: float
    """The largest absolute output of the original."""
    agreement: float | None
    """The share of classes that are equal; None if the targets are no classes."""


@dataclass
class Difference:
    """How far outputs are from those of the original, over batches of one rank."""

    largest: float = 0.0
    magnitude: float = 0.0
    """The largest absolute output of the original."""
    equal: int = 0
    classes: int = 0
    """The number of classes that were compared; 0 if the targets are none."""

    def update(self, original: Any, exported: Any, targets: Any, binding: Binding) -> None:
        """Add the outputs for a batch."""
        for one, other in zip(binding.flat(original), binding.flat(exported), strict=True):
            self.largest = max(self.largest, largest_difference(one, other))
            self.magnitude = max(self.magnitude, float(one.abs().max()) if one.numel() else 0.0)
        before, after = classes(original, targets), classes(exported, targets)
        if before is not None and after is not None:
            self.equal += int((before == after).sum())
            self.classes += before.numel()

    def total(self, comm: Communicator) -> Total:
        """Return the differences over all ranks; collective."""
        largest = torch.tensor([self.largest, self.magnitude], dtype=torch.float64)
        counts = torch.tensor([self.equal, self.classes], dtype=torch.float64)
        comm.all_reduce_(largest, "max")
        comm.all_reduce_(counts, "sum")
        equal, number = counts.tolist()
        return Total(float(largest[0]), float(largest[1]), equal / number if number else None)


@dataclass
class Candidate:
    """An export under test."""

    label: str
    run: Runner
    meters: Sequence[Meter]
    difference: Difference = field(default_factory=Difference)

    def metrics(self, comm: Communicator) -> dict[str, Value]:
        """Return the metrics of the export; collective."""
        return _values(self.meters, comm)


class Judge:
    """Observes an evaluation of the original, and runs the candidates on the same batches."""

    def __init__(self, trained: Trained, inputs: Inputs, binding: Binding, runners: Mapping[str, Runner]) -> None:
        self._inputs, self._binding, self._in_model = inputs, binding, trained.built.loss.in_model
        self._call = caller(trained.built.model)
        self._meters = _meters(trained)
        self.candidates = [Candidate(label, run, _meters(trained)) for label, run in runners.items()]
        self._samples = 0

    @property
    def higher_is_better(self) -> dict[str, bool | None]:
        """Whether the higher of two values is the better one, by the name of a meter."""
        return {meter.name: meter.higher_is_better for meter in self._meters}

    def observe(self, outputs: Any, batch: Batch) -> None:
        """Take a batch and the outputs of the original."""
        inputs = self._inputs.of(batch.whole)
        if self._in_model:
            outputs = self._call(inputs)  # an export is called without targets too
        for meter in self._meters:
            meter.update(outputs, batch)
        tensors = self._binding.tensors(inputs)
        self._samples += batch.samples
        for one in self.candidates:
            found = self._binding.nested(one.run(tensors))
            one.difference.update(outputs, found, batch.targets, self._binding)
            for meter in one.meters:
                meter.update(found, batch)

    def original(self, comm: Communicator) -> dict[str, Value]:
        """Return the metrics of the original; collective."""
        return _values(self._meters, comm)

    def total(self, comm: Communicator) -> int:
        """Return the number of samples that all ranks have observed; collective."""
        number = torch.tensor([self._samples])
        comm.all_reduce_(number, "sum")
        return int(number)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape; infinity if one is not a number."""
    x, y = one.detach().cpu().double(), other.detach().cpu().double()
    if not x.numel():
        return 0.0
    same = (x == y) | (x.isnan() & y.isnan())
    return float((x - y).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).where(~same, torch.zeros(())).max())


def classes(outputs: Any, targets: Any) -> Tensor | None:
    """Return the class with the largest output of each position; None if the targets are no classes."""
    found = scores(outputs)
    if not isinstance(found, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    found = classes_last(found, targets)
    return found.argmax(-1).cpu() if found.shape[:-1] == targets.shape and found.shape[-1] > 1 else None


def _meters(trained: Trained) -> list[Meter]:
    """Return the meters of the run, without the loss if the model computes it from the targets."""
    loss = [] if trained.built.loss.in_model else [MeanLoss(trained.built.loss)]
    found: list[Meter] = [*loss, *copy.deepcopy(list(trained.built.meters))]
    for meter in found:
        meter.reset()
    return found


def _values(meters: Sequence[Meter], comm: Communicator) -> dict[str, Value]:
    return {name: value for meter in meters for name, value in meter.compute(comm).items()}
