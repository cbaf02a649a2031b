"""Choose the report that fits outputs and targets, and the size of the batches."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.execution import largest_batch
from hvd_train.compute.loss import Loss
from hvd_train.compute.metrics.layout import IGNORED, classes_last
from hvd_train.config.schema import LossSection
from hvd_train.data.base import Dataset
from hvd_train.data.batch import Batch
from hvd_train.data.preprocessing import class_names
from hvd_train.data.spec import DataSpec
from hvd_train.data.tokenizing.saved import decoder, described
from hvd_train.trained.evaluating import tokens
from hvd_train.trained.evaluating.classes import ClassReport
from hvd_train.trained.evaluating.labels import LabelReport
from hvd_train.trained.evaluating.losses import LossReport
from hvd_train.trained.evaluating.numbers import NumberReport
from hvd_train.trained.evaluating.report import Report, numbered
from hvd_train.trained.evaluating.tokens import TokenReport

SCORES = 2**26
"""The largest number of scores of tokens in a batch, 256 MiB in float32."""
FEWEST = 8
"""The smallest batch, unless the scores of one are too many."""
BATCHES = 32
"""Batches that there are at least, if they have more than `FEWEST` samples, so that ranks have equal work."""
_OF_TOKENS = ("language", "seq2seq")
"""Tasks whose outputs are scores of tokens at each position."""
_OF_NUMBERS = ("auto", "mse", "l1", "huber")
"""Losses of numbers to predict."""


def batch_size(spec: DataSpec, samples: int) -> int:
    """Return the number of samples in a batch, which depends on the data only.

    A batch that depended on the number of ranks would change the last digits of the outputs.
    """
    most = largest_batch(spec)
    if spec.task in _OF_TOKENS:
        most = min(most, max(1, SCORES // (prod(spec.input_shape) * spec.outputs)))
    size = FEWEST
    while 2 * size <= most and 2 * size * BATCHES <= samples:
        size *= 2
    return min(size, most)


def report(section: LossSection, loss: Loss, data: Dataset, split: Any, outputs: Any, batch: Batch) -> Report:
    """Return the report of the samples of `split`, by the outputs and targets of any batch."""
    found, targets = scores(outputs), batch.targets
    if isinstance(found, Tensor) and isinstance(targets, Tensor):
        if section.member == "bce" and found.numel() == targets.numel():
            return _of_labels(section, data, split, found.numel() // batch.samples)
        if not targets.is_floating_point() and classes_last(found, targets).shape[:-1] == targets.shape:
            return _of_classes(section, loss, data, split, classes_last(found, targets).shape[-1], targets.dim())
        if section.member in _OF_NUMBERS and data.spec.task != "ranking" and found.numel() == targets.numel():
            return NumberReport(_target_names(data, found.numel() // batch.samples), split, len(split))
    return LossReport(loss, split)


def _of_labels(section: LossSection, data: Dataset, split: Any, labels: int) -> Report:
    missing = float(section.options["ignore_value"])
    if labels == 1:
        return ClassReport(numbered(class_names(data), 2), split, int(missing))
    return LabelReport(numbered(class_names(data), labels), split, missing)


def _of_classes(section: LossSection, loss: Loss, data: Dataset, split: Any, number: int, dimensions: int) -> Report:
    ignored = section.options.get("ignore_index", IGNORED)
    if data.spec.task not in _OF_TOKENS and not (loss.in_model and dimensions == 2):
        return ClassReport(numbered(class_names(data), number), split, ignored)
    facts = described(data.preprocessing, data.spec)
    return TokenReport(
        number,
        split,
        sizes=tokens.sizes(facts, number),
        decode=decoder(facts),
        ignored=ignored,
        shifted=bool(section.options.get("shifted")),
    )


def _target_names(data: Dataset, number: int) -> list[str]:
    target = data.preprocessing.get("target")
    name = target.get("name", "target") if isinstance(target, dict) else "target"
    return [str(name)] if number == 1 else [f"{name}[{i}]" for i in range(number)]
