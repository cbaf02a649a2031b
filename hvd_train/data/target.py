"""Data made by your own function, named as package.module:callable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import Subset, TensorDataset, default_collate

from hvd_train import targets
from hvd_train.data.base import Dataset, Split, tensor_split
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Any
from hvd_train.spec import DataSpec

EXPECTED = "expected a torch data set with a length, of samples (input, class) or (input, numbers)"


@dataclass(frozen=True)
class MapSplit:
    """A torch map-style data set, its samples stacked by torch's `default_collate`."""

    samples: MapDataset[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = default_collate([self.samples[i] for i in indices.tolist()])
        return x, _column(y)


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
    return made if isinstance(made, Dataset) else _wrap(made, target)


def _wrap(made: Any, target: str) -> Dataset:
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, Subset(made, []))
    for part in (train, test):
        if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
            raise UserError(f"target '{target}' returned a {type(part).__name__}, {EXPECTED}")
    x, y = _first(train, target)
    splits = _split(train, _is_class(y)), _split(test, _is_class(y))
    if not _is_class(y):
        return Dataset(*splits, DataSpec(tuple(x.shape[1:]), y[0].numel(), "regression"))
    labels = torch.cat([split.labels for split in splits])
    if labels.min() < 0:
        raise UserError(f"target '{target}': found the class {labels.min()}, expected classes 0, 1, 2, ...")
    return Dataset(*splits, DataSpec(tuple(x.shape[1:]), int(labels.max()) + 1, "classification"))


def _first(samples: Any, target: str) -> tuple[Tensor, Tensor]:
    if len(samples) == 0:
        raise UserError(f"target '{target}': no training samples, expected at least one")
    sample = samples[0]
    try:
        x, y = default_collate([sample])
        if isinstance(x, Tensor) and isinstance(y, Tensor) and (_is_class(y) or y.is_floating_point()):
            return x, y
    except (TypeError, ValueError):
        pass
    raise UserError(f"target '{target}': its first sample is a {type(sample).__name__}, {EXPECTED}")


def _split(samples: Any, is_class: bool) -> Split:
    if isinstance(samples, TensorDataset):
        return tensor_split(samples.tensors[0], _column(samples.tensors[1]))
    return MapSplit(samples, _labels(samples) if is_class else torch.full((len(samples),), -1))


def _labels(samples: Any) -> Tensor:
    """Every sample's class: torchvision keeps them in `targets`, which spares decoding every image."""
    if hasattr(samples, "targets") and getattr(samples, "target_transform", None) is None:
        return torch.as_tensor(samples.targets, dtype=torch.int64)
    return torch.as_tensor([samples[i][1] for i in range(len(samples))], dtype=torch.int64)


def _is_class(y: Tensor) -> bool:
    return y.dim() == 1 and not y.is_floating_point()


def _column(y: Tensor) -> Tensor:
    """Targets as the trainer takes them: int64 classes `(n,)`, or numbers `(n, k)`."""
    return y.reshape(len(y), -1) if y.is_floating_point() else y.long()
