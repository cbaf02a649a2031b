"""Makes the meters that `train.metrics` names."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvd_train.compute.loss import LOSS
from hvd_train.compute.metrics.accuracy import Accuracy
from hvd_train.compute.metrics.arguments import from_function, from_signature
from hvd_train.compute.metrics.errors import RootMeanSquaredError
from hvd_train.compute.metrics.function import FunctionMean
from hvd_train.compute.metrics.layout import IGNORED
from hvd_train.compute.metrics.library import TorchMetric
from hvd_train.compute.metrics.meter import Meter, snake_case
from hvd_train.compute.metrics.ranking import NDCG, RANKED, Recall
from hvd_train.config.schema import MetricSection, TrainSection
from hvd_train.config.section import TARGET
from hvd_train.config.targets import resolve
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError, install_remedy

if TYPE_CHECKING:
    from torchmetrics import Metric

_OF_CLASSES = ("classification", "language", "seq2seq")
"""Tasks whose targets are classes."""


def build(train: TrainSection, spec: DataSpec, device: torch.device, targets: Any = None) -> list[Meter]:
    """Return the usual metrics of the task and those of `train`. A metric with the name of a usual one replaces it.

    `targets` are those of a batch, which tell the number of labels if `spec` does not. Raise UserError
    if a metric does not take its options or does not fit the data.
    """
    spec = replace(spec, outputs=spec.outputs or _labels(targets))
    meters: dict[str, Meter] = {}
    for section in train.metrics:
        meter = _meter(section, train, spec, device)
        if meter.name == LOSS or meter.name.startswith(f"{LOSS}_"):
            raise UserError(
                f"train.metrics: '{meter.name}' is a name of the loss; give the metric another one with 'key'"
            )
        if meter.name in meters:
            raise UserError(
                f"train.metrics: two metrics are called '{meter.name}'; give one of them another name with 'key'"
            )
        meters[meter.name] = meter
    return list({**{meter.name: meter for meter in _usual(spec)}, **meters}.values())


def _usual(spec: DataSpec) -> list[Meter]:
    """Return what evaluations measure of samples of this task without being asked."""
    if spec.task == "ranking":
        return [Recall(RANKED), NDCG(RANKED)]
    return [RootMeanSquaredError() if spec.task == "regression" else Accuracy()]


def _meter(section: MetricSection, train: TrainSection, spec: DataSpec, device: torch.device) -> Meter:
    name = section.key or snake_case(section.label.rpartition(":")[2])
    prepare = section.prepare and resolve(section.prepare)
    if section.member == TARGET:
        made = section.create()
        if not _is_metric(made):
            return FunctionMean(name, made)
    else:
        made = _from_library(section, train, spec)
    if prepare is None and _compares_texts(made):
        raise UserError(
            f"train.metrics: {section.label} compares texts; give it 'prepare: package.module:callable', which makes the "
            "arguments of its update from (outputs, batch)"
        )
    return TorchMetric(name, made.to(device), from_function(prepare) if prepare else from_signature(made))


def _from_library(section: MetricSection, train: TrainSection, spec: DataSpec) -> Metric:
    try:
        found = getattr(importlib.import_module(section.module), section.member, None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"train.metrics: {section.member} needs {error.name}, which is not installed; {install_remedy('metrics')}"
        ) from error
    if found is None:
        raise UserError(f"train.metrics: {section.member} needs a package that torchmetrics does not find; install it")
    options = {**_from_data(section, train, spec), **section.options}
    try:
        made: Metric = found(**options)
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"train.metrics: {section.member}: {text}; its options are {', '.join(section.choices)}"
        ) from error
    return made


def _from_data(section: MetricSection, train: TrainSection, spec: DataSpec) -> dict[str, Any]:
    """Return the options of the metric that follow from the data and the loss."""
    takes, given = section.choices, section.options
    is_general = takes.get("task", ...) is None
    filled: dict[str, Any] = {}
    if "ignore_index" in takes:
        filled["ignore_index"] = IGNORED
    if "input_format" in takes:
        filled["input_format"] = "index"
    task = given.get("task") or _task(train, spec)
    if is_general:
        if task is None:
            raise UserError(f"train.metrics: {section.member}: give 'task: binary, multiclass or multilabel'")
        filled["task"] = task
    for name, of_task in (("num_classes", "multiclass"), ("num_labels", "multilabel")):
        if name in takes and (not is_general or task == of_task) and name not in given:
            if not spec.outputs:
                raise UserError(f"train.metrics: {section.member}: give '{name}', which the data does not tell")
            filled[name] = spec.outputs
    return filled


def _task(train: TrainSection, spec: DataSpec) -> str | None:
    """Return the task of classification of the data, None if it is none."""
    if train.loss.member == "bce":
        is_binary = spec.outputs == 1 or (spec.task in _OF_CLASSES and spec.outputs == 2)
        return "binary" if is_binary else "multilabel"
    return "multiclass" if spec.task in _OF_CLASSES else None


def _labels(targets: Any) -> int:
    """Return the number of labels of floating-point targets, 0 of others."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        return 0
    return targets.shape[-1] if targets.dim() > 1 else 1


def _is_metric(made: Any) -> bool:
    """Return True if `made` is a metric of torchmetrics, which is imported only where it was before."""
    return any(cls.__module__ == "torchmetrics.metric" for cls in type(made).__mro__)


def _compares_texts(metric: Metric) -> bool:
    modules = [cls.__module__ for cls in type(metric).__mro__]
    return any(m.startswith("torchmetrics.text.") for m in modules) and not any(
        m.endswith(".perplexity") for m in modules
    )
