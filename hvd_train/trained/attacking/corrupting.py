"""The metric of a model on corrupted inputs, by corruption and severity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_train.compute import domain as domains
from hvd_train.compute.attacking import Domain, seeds_of
from hvd_train.compute.calling import scores
from hvd_train.compute.loss import LOSS, sums, units
from hvd_train.compute.metrics.accuracy import correct
from hvd_train.config import plugins
from hvd_train.data.base import Dataset
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError
from hvd_train.trained.attacking.columns import columns
from hvd_train.trained.attacking.corruption import SEVERITIES, Corruption
from hvd_train.trained.attacking.subject import Subject

Kind = Literal["images", "tables", "texts"]
Sums = tuple[float, float]
"""The sum of a metric over units, and their number."""


@dataclass(frozen=True)
class Corruptions:
    """The corruptions of a kind of inputs. `domain` says how inputs of the model become images."""

    kind: Kind
    names: Sequence[str]
    create: Callable[[str, int], Corruption]
    domain: Domain | None = None

    def apply(self, name: str, severity: int, inputs: Tensor) -> Tensor:
        """Return corrupted `inputs` of the model, which depend on each sample alone."""
        corrupt, number = self.create(name, severity), self.names.index(name)
        raw = self._raw(inputs.cpu())
        generators = (torch.Generator().manual_seed(seed) for seed in seeds_of(inputs, number, severity))
        changed = torch.stack([corrupt(x, generator) for x, generator in zip(raw, generators, strict=True)])
        return self._inputs(changed).to(inputs)

    def _raw(self, inputs: Tensor) -> Tensor:
        if self.domain is None:
            return inputs
        return (inputs.float() / self.domain.scale + self.domain.offset).clamp(0, 1)

    def _inputs(self, raw: Tensor) -> Tensor:
        return raw if self.domain is None else (raw.clamp(0, 1) - self.domain.offset) * self.domain.scale


def corruptions(data: Dataset, label: str | None, sample: Batch) -> Corruptions:
    """Return the corruptions of the inputs of `data`; UserError for inputs of which none is known."""
    inputs = sample.inputs
    if isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.dim() == 2:
        return _known("texts")
    if "columns" in data.preprocessing:
        rows = domains.probe(data.train, label, domains.MEASURED)
        return _known("tables", columns(data.preprocessing["columns"], rows.float()))
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        of_inputs = domains.domain(data, label)
        if of_inputs.unit == domains.PIXELS:
            return replace(_known("images"), domain=of_inputs)
    raise UserError(
        "--method: corruptions are known of images with pixels of 0 to 1, of tables and of tokens, and a batch of the data has "
        f"{shown(inputs)} as inputs; take --method pgd"
    )


def _known(kind: Kind, *arguments: Any) -> Corruptions:
    package = f"{__package__}.{kind}"
    return Corruptions(
        kind, plugins.names(package), lambda name, severity: plugins.create(package, name, severity, *arguments)
    )


def measure(subject: Subject, batch: Batch, change: Callable[[Tensor], Tensor] | None = None) -> Sums:
    """Return the correct positions and all positions of a batch; of a regression, its losses and their units."""
    batch = batch if change is None else replace(batch, inputs=change(batch.inputs))
    with torch.no_grad():
        outputs = subject.forward(batch.inputs)
        counted = correct(scores(outputs), batch.targets)
        if counted is not None:
            return counted
        loss = subject.trained.built.loss
        with subject.trained.execution.precision.forward():
            return sums(loss(outputs, batch))[LOSS], units(loss, batch)


def of_batch(subject: Subject, batch: Batch, found: Corruptions, advance: Callable[[], None]) -> dict[str, list[Sums]]:
    """Return what `measure` does for each corruption and severity, and for 'clean'."""
    measured: dict[str, list[Sums]] = {"clean": [measure(subject, batch)]}
    for name in found.names:
        measured[name] = [measure(subject, batch, partial(found.apply, name, severity)) for severity in SEVERITIES]
        advance()
    return measured


def means(parts: Sequence[Mapping[str, Mapping[str, Sequence[Sums]]]]) -> dict[str, list[float]]:
    """Return the mean metric by corruption and severity, given the sums by batch of each rank.

    Sums are exact, so the result does not depend on the number of ranks.
    """
    batches = [of_batch for part in parts for of_batch in part.values()]
    names = batches[0] if batches else ()
    return {
        name: [_mean([batch[name][place] for batch in batches]) for place in range(len(batches[0][name]))]
        for name in names
    }


def _mean(found: Sequence[Sums]) -> float:
    number = math.fsum(units for _, units in found)
    return math.fsum(value for value, _ in found) / number if number else math.nan
