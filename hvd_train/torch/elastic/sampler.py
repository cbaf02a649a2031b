"""A sampler that redistributes the rest of an epoch when ranks are added or removed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from hvd_train.torch.mpi_ops import rank, size


class ElasticSampler(Sampler[int]):
    """This rank's share of `dataset`: every size-th index of the unprocessed samples.

    Some indices occur twice so that all shares have equal length. The order depends on `seed` and
    the epoch only. `record_batch` counts processed samples, equally on all ranks. `reset` excludes
    them. `set_epoch`, called at the end of an epoch, starts the next one with all samples.
    """

    def __init__(self, dataset: Any, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.epoch = self.processed_num = 0
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.processed_num = epoch, 0
        self.reset()

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """Record that every rank has processed a batch of `batch_size` samples.

        `batch_idx` has no effect.
        """
        self.processed_num += batch_size * self.num_replicas

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "processed_num": self.processed_num}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.processed_num = state_dict["epoch"], state_dict["processed_num"]
        self.reset()

    def reset(self) -> None:
        """Divide the samples that are not processed among the current ranks."""
        self.num_replicas, self.rank = size(), rank()
        order = list(range(len(self.dataset)))
        if self.shuffle:
            random.Random(self.seed + self.epoch).shuffle(order)
        self.remaining_indices = order[self.processed_num :]
        self.num_samples = math.ceil(len(self.remaining_indices) / self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(itertools.cycle(self.remaining_indices), self.rank, self.total_size, self.num_replicas)

    def __len__(self) -> int:
        return self.num_samples
