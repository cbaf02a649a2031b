"""How a batch divides into inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvd_train.data.nesting import count, shown
from hvd_train.errors import UserError, nearest

LABELS = ("labels", "label", "targets", "target", "y")
"""Keys that hold the targets of samples that are dicts. The first that a sample has counts."""


@dataclass(frozen=True)
class Batch:
    """One batch, and its parts."""

    inputs: Any
    """What the model is called with."""
    targets: Any
    """What the loss compares outputs with; None if there are no targets."""
    whole: Any
    """The batch as the data made it."""
    positions: Tensor | None = None
    """The positions in their split that an evaluation asked for; damaged samples are left out of the batch."""

    @property
    def samples(self) -> int:
        return count(self.whole)


def label_key(batch: dict[str, Any], label: str | None) -> str | None:
    """Return the key of the targets in `batch`; None if it has none.

    Raise UserError if the key `label` is given and missing.
    """
    if label is None:
        return next((key for key in LABELS if key in batch), None)
    if label not in batch:
        raise UserError(f"data.label_key: no '{label}' in the samples{nearest(label, [str(key) for key in batch])}")
    return label


def divide(whole: Any, label: str | None = None, *, keep_targets: bool = False) -> Batch:
    """Return the inputs and targets of the batch `whole`.

    - A dict has its targets at the key `label`, by default the first of `LABELS`.
    - The last value of a tuple or list is the targets; the values before it are the inputs. If there
      is one, it is the input itself.
    - Another value is an input without targets.

    With `keep_targets` the inputs contain the targets: the model computes its own loss.
    """
    if isinstance(whole, dict):
        key = label_key(whole, label)
        inputs = whole if keep_targets else {name: value for name, value in whole.items() if name != key}
        return Batch(inputs, whole.get(key) if key else None, whole)
    if label is not None:
        raise UserError(
            f"data.label_key: '{label}' is a key of samples that are dicts, and a batch here is {shown(whole)}"
        )
    if not isinstance(whole, tuple | list) or len(whole) < 2:
        return Batch(whole, None, whole)
    values = whole if keep_targets else whole[:-1]
    return Batch(values[0] if len(values) == 1 else values, whole[-1], whole)
