"""Inputs of real samples: examples for exporters, samples for quantizers and for latencies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hvd_train.data import samples
from hvd_train.data.base import Dataset, Split
from hvd_train.data.batch import divide
from hvd_train.errors import UserError
from hvd_train.trained.exporting.binding import Binding
from hvd_train.trained.exporting.calibration import Calibration

EXAMPLES = 16
"""Held-out samples whose sizes are compared, to find the dimensions that differ."""
CALIBRATION, CALIBRATION_BATCH = 128, 32
"""Training samples that a quantizer observes, and how many at once."""


class Inputs:
    """Makes inputs of the model from the samples of a run, without targets."""

    def __init__(self, data: Dataset, label: str | None) -> None:
        """Raise UserError if no samples are held out."""
        if not len(data.test):
            raise UserError(
                "the data has no held-out samples to judge an export with; give some, such as --data test_fraction=0.1"
            )
        self._data, self._label = data, label

    def of(self, whole: Any) -> Any:
        """Return the inputs in a batch."""
        return divide(whole, self._label).inputs

    def held_out(self, number: int) -> Any:
        """Return the inputs of the first `number` held-out samples, again from the first if there are fewer."""
        positions = torch.arange(number) % len(self._data.test)
        whole = self._data.test.batch(positions)
        if whole is None:
            raise UserError(f"the first {number} held-out samples are damaged")
        return self.of(whole)

    def examples(self, binding: Binding) -> list[tuple[Tensor, ...]]:
        """Return batches of two, three, and then one sample each."""
        test = self._data.test
        batches = [self.held_out(2), self.held_out(3)]
        singles = (test.batch(torch.tensor([n])) for n in range(min(EXAMPLES, len(test))))
        return [binding.tensors(x) for x in (*batches, *(self.of(one) for one in singles if one is not None))]

    def calibration(self, binding: Binding) -> Calibration:
        """Return training samples at equal distances; the first sample of a stream."""
        batches = tuple(binding.tensors(self.of(whole)) for whole in self._training() if whole is not None)
        return Calibration(binding.inputs, batches, lambda model, batch: binding.call(model, batch))

    def _training(self) -> Iterator[Any]:
        train = self._data.train
        if not isinstance(train, Split):
            return iter([samples.first_batch(train)])
        return map(train.batch, samples.equally_spaced(len(train), CALIBRATION).split(CALIBRATION_BATCH))
