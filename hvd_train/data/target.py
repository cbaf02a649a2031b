"""Data made by your own function, named as package.module:callable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import Subset, TensorDataset, default_collate

from hvd_train import targets
from hvd_train.data._check import classes, finite_tensor, remarks
from hvd_train.data.base import Dataset, Split, TensorSplit, tensor_split
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Any
from hvd_train.spec import DataSpec

EXPECTED = "expected a torch data set with a length, of samples (input, class) or (input, numbers)"


@dataclass(frozen=True)
class MapSplit:
    """A torch map-style data set, its samples stacked by torch's `default_collate`; messages call it `name`.

    Samples are made when they are asked for, and so is the check of them: UserError names the first that is not finite, is of
    another shape than those before it, or has a class that is not below `outputs` (0 in a regression).
    """

    samples: MapDataset[Any]
    labels: Tensor
    name: str
    outputs: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        samples = [self.samples[i] for i in indices.tolist()]
        try:
            x, y = default_collate(samples)
        except (RuntimeError, TypeError, ValueError):
            raise self._uneven(samples, indices.tolist()) from None
        x, y = _plain(x), _column(y)
        self._refuse(~torch.isfinite(x), x, indices, "in the inputs, expected finite numbers")
        self._refuse(~torch.isfinite(y), y, indices, "in the targets, expected finite numbers")
        if self.outputs:
            other = (y < 0) | (y >= self.outputs) | (y != y.long())
            self._refuse(other, y, indices, f"as the target, expected a class below {self.outputs}")
        return x, y

    def _refuse(self, bad: Tensor, values: Tensor, indices: Tensor, why: str) -> None:
        """UserError that names the first sample of which a value is `bad`."""
        if bad.any():
            first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.dim() > 1 else int(bad.nonzero()[0])
            found = values[first][bad[first]].flatten()[0].item()
            raise UserError(f"{self.name}[{int(indices[first])}]: found {found} {why}")

    def _uneven(self, samples: list[Any], indices: list[int]) -> UserError:
        """Which sample is not like the first of the batch."""
        shapes = [_shape(sample) for sample in samples]
        number = next((n for n, shape in enumerate(shapes) if shape != shapes[0]), 0)
        return UserError(
            f"{self.name}[{indices[number]}] is {shapes[number]}, expected {shapes[0]} as {self.name}[{indices[0]}]"
        )


def create(
    *,
    target: Annotated[str, "package.module:callable, called with `args`"],
    args: Annotated[dict[str, Any], "keyword arguments of the call"] = {},
) -> Dataset:
    """The `hvd_train.data.base.Dataset` that the callable returns, or one made of torch data sets.

    Those are a pair (training, test) or one alone, of samples (input, class) or (input, numbers). UserError
    for a target that cannot be called with `args`, for anything else that it returns, and for no samples.
    """
    made = targets.call(target, args)
    name = f"target '{target}'"
    return _checked(made, name) if isinstance(made, Dataset) else _wrap(made, name)


def _checked(data: Dataset, name: str) -> Dataset:
    """A data set of the user's own class, whose values are looked at where they lie in memory."""
    for part, split in (("training", data.train), ("test", data.test)):
        if isinstance(split, TensorSplit):
            _check_tensors(split.x, split.y, f"{name}, {part}")
        if data.spec.task == "classification" and len(split) and int(split.labels.max()) >= data.spec.outputs:
            raise UserError(
                f"{name}, {part}: found the class {int(split.labels.max())}, but the DataSpec says {data.spec.outputs} outputs"
            )
    return data


def _wrap(made: Any, name: str) -> Dataset:
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, Subset(made, []))
    for part in (train, test):
        if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
            raise UserError(f"{name} returned a {type(part).__name__}, {EXPECTED}")
    if len(train) == 0:
        raise UserError(f"{name}: no training samples, expected at least one")
    x, y = _first(train, f"{name}: its first sample")
    if len(test):
        _check_alike((x, y), _first(test, f"{name}: its first test sample"), name)
    labels = [_labels(part, f"{name}, {kind}", _is_class(y)) for kind, part in (("training", train), ("test", test))]
    outputs = int(torch.cat(labels).max()) + 1 if _is_class(y) else y[0].numel()
    splits = [
        _split(part, of, f"{name}, {kind}", outputs if _is_class(y) else 0)
        for kind, part, of in zip(("training", "test"), (train, test), labels, strict=True)
    ]
    spec = DataSpec(tuple(x.shape[1:]), outputs, "classification" if _is_class(y) else "regression")
    return Dataset(splits[0], splits[1], spec, _told(splits, outputs, name))


def _told(splits: list[Split], outputs: int, name: str) -> tuple[str, ...]:
    """Warnings about targets, where they are known before training."""
    targets = [split.y if isinstance(split, TensorSplit) else split.labels for split in splits]
    known = isinstance(splits[0], TensorSplit) or bool((targets[0] >= 0).all())
    return tuple(remarks(targets[0], targets[1], outputs, name)) if known else ()


def _first(samples: Any, name: str) -> tuple[Tensor, Tensor]:
    sample = samples[0]
    try:
        x, y = default_collate([sample])
        if all(isinstance(t, Tensor) and not t.is_complex() for t in (x, y)) and (
            y.is_floating_point() or _is_class(y)
        ):
            return x, y
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} is {_shape(sample)}, {EXPECTED}")


def _shape(sample: Any) -> str:
    """A sample in words."""
    parts = sample if isinstance(sample, tuple | list) else ()
    inner = ", ".join(f"{type(p).__name__}{_dtype(p)}" for p in parts)
    return f"a {type(sample).__name__}" + (f" ({inner})" if inner else "")


def _dtype(part: Any) -> str:
    if hasattr(part, "dtype") and hasattr(part, "shape"):
        return f" {part.dtype} {tuple(part.shape)}"
    return f" of {len(part)}" if isinstance(part, list | tuple | str) else ""


def _check_alike(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], name: str) -> None:
    (x, y), (test_x, test_y) = train, test
    if x.shape != test_x.shape or _is_class(y) != _is_class(test_y) or y.shape != test_y.shape:
        raise UserError(f"{name}: a test sample is {_pair(test_x, test_y)}, expected {_pair(x, y)} as in training")


def _pair(x: Tensor, y: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape[1:])} with the target {y.dtype} {tuple(y.shape[1:])}"


def _split(samples: Any, labels: Tensor, name: str, outputs: int) -> Split:
    if isinstance(samples, TensorDataset):
        x, y = _plain(samples.tensors[0]), _column(samples.tensors[1])
        _check_tensors(x, y, name)
        return tensor_split(x, y)
    return MapSplit(samples, labels, name, outputs)


def _check_tensors(x: Tensor, y: Tensor, name: str) -> None:
    finite_tensor(x, f"{name} inputs")
    finite_tensor(y, f"{name} targets")


def _labels(samples: Any, name: str, is_class: bool) -> Tensor:
    """Every sample's class, -1 in a regression: torchvision keeps them in `targets`, which spares decoding every image."""
    if not is_class:
        return torch.full((len(samples),), -1)
    if isinstance(samples, TensorDataset):
        found: Any = samples.tensors[1]
    elif hasattr(samples, "targets") and getattr(samples, "target_transform", None) is None:
        found = samples.targets
    else:
        found = [samples[i][1] for i in range(len(samples))]
    if len(found) != len(samples):
        raise UserError(f"{name}: {len(found)} targets, expected one for each of {len(samples)} samples")
    values = found.tolist() if isinstance(found, Tensor | np.ndarray) else found
    numbers = [_class(value, f"{name}[{i}]") for i, value in enumerate(values)]
    return classes(np.array(numbers), name) if numbers else torch.empty(0, dtype=torch.int64)


def _class(value: Any, name: str) -> int:
    number = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if isinstance(number, int) or (isinstance(number, float) and number.is_integer()):
        return int(number)
    raise UserError(f"{name}: found the target {number}, expected a class, as in its first sample")


def _plain(x: Tensor) -> Tensor:
    """Inputs in a dtype that torch can pick samples from."""
    return x.long() if x.dtype in {torch.uint16, torch.uint32, torch.uint64} else x


def _is_class(y: Tensor) -> bool:
    return y.dim() == 1 and not y.is_floating_point()


def _column(y: Tensor) -> Tensor:
    """Targets as the trainer takes them: int64 classes `(n,)`, or numbers `(n, k)`."""
    return y.reshape(len(y), -1) if y.is_floating_point() else y.long()
