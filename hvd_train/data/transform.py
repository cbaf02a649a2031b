"""The contract of a transform: what changes training samples before the model sees them.

A transform is a file in `hvd_train/data/transforms` whose `create(context, **options)` returns a
`Transform`. It overrides the level that it works on. It draws random numbers from the generator
that it is given, which depends on the seed, the epoch and the positions of the samples. So a run
repeats them after a resume and with any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hvd_train.data.base import Split
from hvd_train.data.spec import DataSpec


@dataclass(frozen=True)
class TransformContext:
    """What a transform may know."""

    spec: DataSpec
    seed: int = 0
    label: str | None = None
    """The key of the targets in samples that are dicts, as `data.label` says."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How the source makes inputs, as in `data.json`."""


class Transform:
    """Changes nothing. A transform is picklable."""

    everywhere = False
    """True if the transform makes the targets, so that held-out samples need it too."""

    @property
    def of_samples(self) -> bool:
        """True if the transform changes samples one at a time."""
        return type(self).sample is not Transform.sample

    @property
    def of_rows(self) -> bool:
        """True if the transform changes the samples of a batch of arrays in one go, which is faster."""
        return type(self).rows is not Transform.rows

    def grow(self, split: Split) -> Split:
        """Return the training samples with further ones."""
        return split

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        """Return the transformed sample."""
        return sample

    def rows(self, batch: Any, generators: Sequence[torch.Generator]) -> Any:
        """Return a batch of tensors whose samples are as `sample` makes them of each with its generator."""
        raise NotImplementedError

    def batch(self, batch: Any, generator: torch.Generator) -> Any:
        """Return the transformed batch."""
        return batch
