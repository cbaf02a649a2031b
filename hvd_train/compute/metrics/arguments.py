"""What the `update` of a metric is called with, given outputs and a batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.metrics import layout
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError, nearest

if TYPE_CHECKING:
    from torchmetrics import Metric

Arguments = Callable[[Any, Batch], tuple[tuple[Any, ...], dict[str, Any]]]
"""Makes the positional and the named arguments of `update`."""
Pair = Callable[[Any, Any], tuple[Any, Any]]
"""Makes the first two arguments of `update` from outputs and targets."""

_SINGLE = ("torchmetrics.segmentation.", "torchmetrics.text.squad", "torchmetrics.image.ssim", "torchmetrics.image.scc")
"""Modules of metrics that add up a batch in float32, or scale by its range. They get one sample at a
time, so that their value does not depend on the batches."""
_LABELS = {"clustering", "nominal", "segmentation"}
"""Packages of torchmetrics whose metrics compare predicted classes."""


def from_function(prepare: Callable[[Any, Any], Any]) -> Arguments:
    """Return what `prepare(outputs, batch)` makes: a tuple, a dict of named arguments, or one value."""

    def arguments(outputs: Any, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        made = prepare(outputs, batch.whole)
        if isinstance(made, dict):
            return (), made
        return (made if isinstance(made, tuple) else (made,)), {}

    return arguments


def from_signature(metric: Metric) -> Arguments:
    """Return the outputs and the targets, and what the batch has under the names of other parameters.

    A metric with one parameter gets the outputs.
    """
    parameters = list(inspect.signature(type(metric).update).parameters.values())[1:]
    named = [p for p in parameters[2:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_targets = len(parameters) > 1 and (parameters[1].default is inspect.Parameter.empty or not named)
    pair = _pair(metric)

    def arguments(outputs: Any, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = scores(outputs)
        both = pair(given, batch.targets) if takes_targets else (layout.wide(given),)
        return both, _by_name(named, batch.whole, both[0])

    return arguments


def calls(metric: Metric, arguments: tuple[Any, ...], named: dict[str, Any], samples: int) -> Iterator[tuple[Any, Any]]:
    """Yield the arguments of each call of `update` for a batch."""
    if not any(cls.__module__.startswith(_SINGLE) for cls in type(metric).__mro__):
        yield arguments, named
        return
    for i in range(samples):
        yield tuple(value[i : i + 1] for value in arguments), {key: value[i : i + 1] for key, value in named.items()}


def _pair(metric: Metric) -> Pair:
    """Return the layout that the metric takes, by the part of torchmetrics that it is from."""
    ours = [cls for cls in type(metric).__mro__ if cls.__module__.startswith("torchmetrics.")]
    package = ours[0].__module__.split(".")[1]
    names = " ".join(cls.__name__ for cls in ours)
    if package == "classification":
        if "Multilabel" in names:
            return functools.partial(layout.multilabel, labels=int(metric.num_labels))  # type: ignore[arg-type]
        return layout.multiclass if "Multiclass" in names else layout.binary
    if package == "retrieval":
        return layout.values if metric.allow_non_binary_target else layout.relevances
    if package in _LABELS and "preds" in inspect.signature(type(metric).update).parameters:
        return layout.classes
    return layout.sequences if "Perplexity" in names else layout.values


def _by_name(parameters: list[inspect.Parameter], whole: Any, outputs: Any) -> dict[str, Any]:
    found = {}
    for parameter in parameters:
        if isinstance(whole, Mapping) and parameter.name in whole:
            found[parameter.name] = _aligned(whole[parameter.name], outputs)
        elif parameter.default is parameter.empty:
            known = nearest(parameter.name, map(str, whole)) if isinstance(whole, Mapping) else ", which is no dict"
            raise UserError(f"its update takes '{parameter.name}', which the batch does not have{known}")
    return found


def _aligned(value: Any, outputs: Any) -> Any:
    """Return `value` with the shape of the outputs, if it has one number for each sample."""
    if not isinstance(value, Tensor) or not isinstance(outputs, Tensor) or value.shape == outputs.shape:
        return value
    if value.numel() == outputs.numel():
        return value.reshape(outputs.shape)
    if value.numel() == len(outputs):
        return value.reshape(-1, *[1] * (outputs.dim() - 1)).expand_as(outputs)
    return value
