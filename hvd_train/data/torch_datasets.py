"""Data sets of torch, which a target of the user returns, as the `Dataset` of ddl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from hvd_train.data.base import Dataset, Stream, TensorSplit, tensor_split
from hvd_train.data.nesting import shown
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.value_checks import check_finite, classes
from hvd_train.errors import UserError

EXPECTED = "expected a torch data set with a length or an iterable one"
Pair = tuple[Tensor, Tensor]
OTHER = DataSpec((), 0, "other")
MOST_SCANNED = 10_000
"""Samples that are read at the start for their classes, where the data set has no `targets`."""


@dataclass(frozen=True)
class TorchItems:
    """A map-style data set of torch. Messages call it `name`.

    If `supervised`, samples are (input, class) or (input, numbers), and `checked` raises UserError
    for the first sample that is not finite, or has a class that is not below `outputs` (0 in a
    regression).
    """

    samples: MapDataset[Any]
    labels: Tensor
    name: str
    supervised: bool = False
    outputs: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Any:
        """The lengths of the samples, if the data set has them as `lengths`."""
        return getattr(self.samples, "lengths", None)

    @property
    def groups(self) -> Tensor | None:
        """The groups of the samples, if the data set has them as `groups`."""
        groups = getattr(self.samples, "groups", None)
        return None if groups is None else torch.as_tensor(groups, dtype=torch.int64)

    def item(self, index: int) -> Any:
        return self.samples[index]

    def checked(self, batch: Any, positions: Sequence[int]) -> Any:
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
        if not self.supervised or not pair:
            return batch
        x, y = _plain(batch[0]), _column(batch[1])
        self._refuse(~torch.isfinite(x), x, positions, "in the inputs, expected finite numbers")
        self._refuse(~torch.isfinite(y), y, positions, "in the targets, expected finite numbers")
        if self.outputs:
            other = (y < 0) | (y >= self.outputs) | (y != y.long())
            self._refuse(other, y, positions, f"as the target, expected a class below {self.outputs}")
        return x, y

    def _refuse(self, bad: Tensor, values: Tensor, positions: Sequence[int], why: str) -> None:
        """Raise UserError for the first sample that has a `bad` value."""
        if bad.any():
            first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.dim() > 1 else int(bad.nonzero()[0])
            value = values[first][bad[first]].flatten()[0].item()
            raise UserError(f"{self.name}[{positions[first]}]: found {value} {why}")


@dataclass(frozen=True)
class TorchStream:
    """An iterable data set of torch. Every part takes each `parts`-th sample."""

    samples: IterableDataset[Any]
    name: str

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[Any]:
        if hasattr(self.samples, "set_epoch"):
            self.samples.set_epoch(epoch)
        return islice(iter(self.samples), part, None, parts)

    def sample(self, raw: Any) -> Any:
        return raw


def as_dataset(made: Any, name: str, *, stacked: bool = True) -> Dataset:
    """Return `made` as a checked `Dataset`; messages call it `name`.

    `made` is a `Dataset`, one torch data set, or a pair (training, test) of torch data sets. `test`
    may be a dict of data sets: the first is the main one. Samples (input, class) make a
    classification, (input, numbers) a regression. Samples that are `stacked` have one shape. Raise
    UserError for anything else than a data set, and if there are no training samples.
    """
    return _checked(made, name) if isinstance(made, Dataset) else _wrap(made, name, stacked)


def _checked(data: Dataset, name: str) -> Dataset:
    """Return `data` after a check of its classes, and of its values if they are in memory."""
    for part, split in (("training", data.train), ("test", data.test)):
        if isinstance(split, TensorSplit):
            _check_tensors(split.x, split.y, f"{name}, {part}")
        if isinstance(split, Stream):
            continue
        if data.spec.task == "classification" and len(split) and int(split.labels.max()) >= data.spec.outputs:
            raise UserError(
                f"{name}, {part}: found the class {int(split.labels.max())}, but the DataSpec says {data.spec.outputs} outputs"
            )
    return data


def _wrap(made: Any, name: str, stacked: bool) -> Dataset:
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, [])
    if isinstance(train, str | bytes | dict) or not (_has_positions(train) or hasattr(train, "__iter__")):
        raise UserError(f"{name} returned a value of type {type(train).__name__}, {EXPECTED}")
    named = test if isinstance(test, dict) else {"test": test}
    held_out = [_with_positions(part, f"{name}: the held-out data") for part in named.values()]
    if not _has_positions(train):
        parts = [_items(part, f"{name}, {kind}") for kind, part in zip(named, held_out, strict=True)]
        return _dataset(TorchStream(train, f"{name}, training"), dict(zip(named, parts, strict=True)), OTHER)
    if len(train) == 0:
        raise UserError(f"{name}: no training samples, expected at least one")
    named = {"training": train, **dict(zip(named, held_out, strict=True))}
    first = _pair(train[0])
    if first is None:
        items = {kind: _items(part, f"{name}, {kind}") for kind, part in named.items()}
        return _dataset(items.pop("training"), items, OTHER)
    return _supervised(named, first, name, stacked)


def _dataset(train: Any, held_out: dict[str, Any], spec: DataSpec, warnings: tuple[str, ...] = ()) -> Dataset:
    test, *others = held_out.items()
    return Dataset(train, test[1], spec, warnings, others=dict(others))


def _has_positions(samples: Any) -> bool:
    return hasattr(samples, "__len__") and hasattr(samples, "__getitem__") and not isinstance(samples, IterableDataset)


def _with_positions(samples: Any, name: str) -> Any:
    """Return a data set with a length. The first samples of an iterable one are kept in memory."""
    if _has_positions(samples):
        return samples
    if not hasattr(samples, "__iter__"):
        raise UserError(f"{name} is of type {type(samples).__name__}, {EXPECTED}")
    return list(islice(iter(samples), MOST_SCANNED))


def _items(samples: Any, name: str) -> TorchItems:
    return TorchItems(samples, torch.full((len(samples),), -1), name)


def _supervised(named: dict[str, Any], first: Pair, name: str, stacked: bool) -> Dataset:
    """Return the data sets of samples (input, class) or (input, numbers); the first one trains."""
    x, y = first
    for kind, part in named.items():
        if stacked and kind != "training" and len(part):
            _check_alike(first, part[0], f"{name}: a {kind} sample")
    labels = {kind: _labels(part, f"{name}, {kind}", _is_class(y)) for kind, part in named.items()}
    outputs = _outputs(named["training"], list(labels.values()), y)
    splits = {
        kind: _split(part, labels[kind], f"{name}, {kind}", outputs if _is_class(y) else 0)
        for kind, part in named.items()
    }
    spec = DataSpec(tuple(x.shape[1:]), outputs, "classification" if _is_class(y) else "regression")
    train = splits.pop("training")
    warnings = _warnings([train, *splits.values()], outputs, name)
    return replace(_dataset(train, splits, spec, warnings), preprocessing=_named(named["training"], outputs))


def _named(train: Any, outputs: int) -> dict[str, Any]:
    """Return the names of the classes, which data sets of torchvision have, as other sources describe them."""
    known = getattr(train, "classes", None)
    if not isinstance(known, list | tuple) or len(known) != outputs or not all(isinstance(n, str) for n in known):
        return {}
    return {"target": {"classes": [*known]}}


def _outputs(train: Any, labels: list[Tensor], y: Tensor) -> int:
    """Return the number of classes or of target values; 0 if the classes are not known."""
    if not _is_class(y):
        return y[0].numel()
    known = getattr(train, "classes", None)
    highest = int(torch.cat(labels).max())
    return max(highest + 1, len(known) if isinstance(known, list | tuple) else 0)


def _warnings(splits: Sequence[TensorSplit | TorchItems], outputs: int, name: str) -> tuple[str, ...]:
    """Return warnings about the targets, if they are known before training."""
    targets = [split.y if isinstance(split, TensorSplit) else split.labels for split in splits]
    known = isinstance(splits[0], TensorSplit) or bool((targets[0] >= 0).all())
    return tuple(target_warnings(targets[0], torch.cat(targets[1:]), outputs, name)) if known else ()


def _pair(sample: Any) -> Pair | None:
    """Return a sample (input, class) or (input, numbers) as a batch of one; None if it is another."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return None
    try:
        x, y = default_collate([tuple(sample)])
    except (TypeError, ValueError):
        return None
    both = isinstance(x, Tensor) and isinstance(y, Tensor) and not x.is_complex() and not y.is_complex()
    return (x, y) if both and (_is_class(y) or (y.is_floating_point() and y.dim() <= 2)) else None


def _check_alike(train: Pair, sample: Any, name: str) -> None:
    test = _pair(sample)
    if test is None:
        raise UserError(f"{name} is {shown(sample)}, expected {_shown(*train)} as in training")
    (x, y), (test_x, test_y) = train, test
    if _is_class(y) != _is_class(test_y) or (x.shape, y.shape) != (test_x.shape, test_y.shape):
        raise UserError(f"{name} is {_shown(test_x, test_y)}, expected {_shown(x, y)} as in training")


def _shown(x: Tensor, y: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape[1:])} with the target {y.dtype} {tuple(y.shape[1:])}"


def _split(samples: Any, labels: Tensor, name: str, outputs: int) -> TensorSplit | TorchItems:
    if isinstance(samples, TensorDataset):
        x, y = _plain(samples.tensors[0]), _column(samples.tensors[1])
        _check_tensors(x, y, name)
        return tensor_split(x, y)
    return TorchItems(samples, labels, name, supervised=True, outputs=outputs)


def _check_tensors(x: Tensor, y: Tensor, name: str) -> None:
    check_finite(x, f"{name} inputs")
    check_finite(y, f"{name} targets")


def _labels(samples: Any, name: str, is_class: bool) -> Tensor:
    """Return the class of each sample, -1 in a regression and if too many samples had to be read.

    Data sets of torchvision have the classes in `targets`, so no image is decoded.
    """
    if not is_class:
        return torch.full((len(samples),), -1)
    if isinstance(samples, TensorDataset):
        labels: Any = samples.tensors[1]
    elif hasattr(samples, "targets") and getattr(samples, "target_transform", None) is None:
        labels = samples.targets
    elif len(samples) > MOST_SCANNED:
        return torch.full((len(samples),), -1)
    else:
        labels = [samples[i][1] for i in range(len(samples))]
    if len(labels) != len(samples):
        raise UserError(f"{name}: {len(labels)} targets, expected one for each of {len(samples)} samples")
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
    numbers = [_class(value, f"{name}[{i}]") for i, value in enumerate(values)]
    return classes(np.array(numbers), name) if numbers else torch.empty(0, dtype=torch.int64)


def _class(value: Any, name: str) -> int:
    number = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if isinstance(number, int) or (isinstance(number, float) and number.is_integer()):
        return int(number)
    raise UserError(f"{name}: found the target {number}, expected a class, as in its first sample")


def _plain(x: Tensor) -> Tensor:
    """Return inputs in a dtype that `index_select` supports."""
    return x.long() if x.dtype in {torch.uint16, torch.uint32, torch.uint64} else x


def _is_class(y: Tensor) -> bool:
    return y.dim() == 1 and not y.is_floating_point()


def _column(y: Tensor) -> Tensor:
    """Return targets in the form of the trainer: int64 classes `(n,)`, or numbers `(n, k)`."""
    return y.reshape(len(y), -1) if y.is_floating_point() else y.long()
