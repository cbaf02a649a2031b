"""The batches of an epoch, loaded ahead of the steps that use them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.agents.collector import Collector
from hvd_train.comm.communicator import Communicator
from hvd_train.data import samples
from hvd_train.data.batch import Batch
from hvd_train.data.loading.loader import Loader
from hvd_train.data.samples import StreamSplit
from hvd_train.sync.membership import Share
from hvd_train.training.progress import Progress
from hvd_train.training.sampler import Epoch, Sampler

Prepare = Callable[[Any], Batch]
"""Moves a batch to the device and divides it into inputs and targets."""


class MicroBatches(Sequence[Batch]):
    """The micro-batches of one rank in a step. Each is loaded when it is first read, in order.

    `keep` keeps all of them in memory, so that they can be read again.
    """

    skipped = 0
    """Damaged samples that were left out; after `keep`."""

    def __init__(self, number: int, positions: int, loaded: Iterator[Any], prepare: Prepare) -> None:
        self.positions = positions
        """Samples that the rank has in the step, damaged ones included."""
        self._number, self._loaded, self._prepare = number, loaded, prepare
        self._read = 0
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return self._number if self._kept is None else len(self._kept)

    def __getitem__(self, number: Any) -> Any:
        if self._kept is not None:
            return self._kept[number]
        assert number == self._read, "micro-batches are read in order"
        self._read += 1
        return self._prepare(next(self._loaded))

    def keep(self) -> None:
        """Load all micro-batches now. Those without a sample that is not damaged are left out."""
        if self._kept is None:
            loaded = [next(self._loaded) for _ in range(self._number)]
            self._kept = [self._prepare(batch) for batch in loaded if batch is not None]
            self.skipped = self.positions - sum(batch.samples for batch in self._kept)


class Feed(Protocol):
    """The steps of one epoch on this rank."""

    dropped: int
    """Samples of this rank that were loaded and not used, once the epoch is over."""

    steps: int
    """The number of steps; `sys.maxsize` as long as it is not known."""

    def take(self, step: int) -> MicroBatches:
        """Return the micro-batches of `step`; steps follow one another. May be collective."""

    def samples(self, step: int) -> int:
        """Return the number of samples of all ranks in the `step` that was taken last."""

    def rank_state(self) -> dict[str, Tensor]:
        """Return what this rank needs to continue after the last step, besides its number."""

    def close(self) -> None:
        """Stop to load."""


class PlannedFeed:
    """The batches of an epoch whose samples have positions."""

    dropped = 0

    def __init__(self, epoch: Epoch, split: Any, number: int, first: int, loader: Loader, prepare: Prepare) -> None:
        """`number` is that of the epoch, and `first` the step to begin with."""
        self._epoch, self._prepare, self.steps = epoch, prepare, epoch.steps
        plan = [batch for step in range(first, epoch.steps) for batch in epoch.micro_batches(step)]
        self._loaded = loader.load(samples.at(split, number), plan)

    def take(self, step: int) -> MicroBatches:
        sizes = [len(batch) for batch in self._epoch.micro_batches(step)]
        return MicroBatches(len(sizes), sum(sizes), self._loaded, self._prepare)

    def samples(self, step: int) -> int:
        return self._epoch.samples(step)

    def rank_state(self) -> dict[str, Tensor]:
        return {}

    def close(self) -> None:
        _close(self._loaded)


class StreamFeed:
    """The batches of an epoch of a stream.

    Before each step the ranks of `comm` agree whether all of them have samples for the step after
    it. The epoch ends if one has none. Samples that the other ranks have loaded for that step are
    dropped.
    """

    def __init__(
        self,
        split: StreamSplit,
        share: Share | None,
        comm: Communicator,
        sizes: tuple[int, int],
        number: int,
        start: int,
        loader: Loader,
        prepare: Prepare,
    ) -> None:
        """`sizes` is (batch size, micro-batches of a step), and `start` the samples to pass over."""
        self.steps = sys.maxsize
        self.dropped = 0
        """Samples of this rank that were loaded and not used."""
        self._comm, self._prepare, self._has_share = comm, prepare, share is not None
        (self._batch_size, self._accumulate), self._taken = sizes, start
        raw = split.at(number).raw(share.worker, share.workers, start) if share else iter(())
        self._plan = _Chunks(raw, self._batch_size)
        self._loaded = loader.load(split.at(number), self._plan)
        self._next = self._pull()
        self._all = 0
        if not self._agree(len(self._next), self._next)[1]:
            self.steps = 0

    def take(self, step: int) -> MicroBatches:
        taken, self._next = self._next, self._pull()
        positions = self._plan.sizes(len(taken))
        self._taken += positions
        self._all, goes_on = self._agree(positions, self._next)
        if not goes_on:
            self.steps = step + 1
            self.dropped = self._plan.sizes(len(self._next))
        return MicroBatches(len(taken), positions, iter(taken), self._prepare)

    def samples(self, step: int) -> int:
        return self._all

    def rank_state(self) -> dict[str, Tensor]:
        return {"taken": torch.tensor(self._taken)}

    def close(self) -> None:
        _close(self._loaded)

    def _pull(self) -> list[Any]:
        return list(islice(self._loaded, self._accumulate))

    def _agree(self, positions: int, following: list[Any]) -> tuple[int, bool]:
        """Return the samples of all ranks, and whether each has a following step; collective."""
        out = torch.tensor([positions, int(self._has_share and not following)])
        self._comm.all_reduce_(out, "sum")
        return int(out[0]), int(out[1]) == 0


class _Chunks:
    """Lists of `size` values of an iterator, with their sizes in order."""

    def __init__(self, values: Iterator[Any], size: int) -> None:
        self._values, self._size = values, size
        self._sizes: list[int] = []

    def __iter__(self) -> Iterator[list[Any]]:
        while chunk := list(islice(self._values, self._size)):
            self._sizes.append(len(chunk))
            yield chunk

    def sizes(self, chunks: int) -> int:
        """Return the number of values in the next `chunks` chunks."""
        taken, self._sizes = self._sizes[:chunks], self._sizes[chunks:]
        return sum(taken)


class Feeds:
    """Opens the feed of each epoch, and continues where a checkpoint was saved."""

    def __init__(
        self, sampler: Sampler, split: Any, loader: Loader, prepare: Prepare, collector: Collector | None = None
    ) -> None:
        """`collector` makes the samples of each epoch; None: they are those of `split`."""
        self._sampler, self._split, self._loader, self._prepare = sampler, split, loader, prepare
        self._collector = collector
        self._feed: Feed | None = None
        self._taken: int | None = None
        self._dropped = 0

    def open(self, progress: Progress) -> Feed:
        """Return the feed of the current epoch from the position of `progress` on; collective."""
        self.close()
        if isinstance(self._split, StreamSplit):
            self._feed = self._stream(self._split, progress)
        else:
            split = self._split if self._collector is None else self._collect(self._collector, progress)
            epoch = self._sampler.epoch(progress.epoch)
            progress.begin(epoch)
            first = progress.step_in_epoch
            self._feed = PlannedFeed(epoch, split, progress.epoch, first, self._loader, self._prepare)
        progress.steps_of_epoch = self._feed.steps
        return self._feed

    @property
    def dropped(self) -> int:
        """Samples of this rank at the ends of epochs that were not used, since a rank had none."""
        return self._dropped + (self._feed.dropped if self._feed else 0)

    def rank_state(self) -> dict[str, Tensor]:
        """Return what this rank resumes from."""
        return {**self._sampler.rank_state(), **(self._feed.rank_state() if self._feed else {})}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Resume from what `rank_state` returned."""
        self._taken = int(state["taken"]) if "taken" in state else None
        self._sampler.load_rank_state({name: value for name, value in state.items() if name != "taken"})

    def close(self) -> None:
        """Stop to load."""
        if self._feed is not None:
            self._dropped = self.dropped
            self._feed.close()
            self._feed = None

    @staticmethod
    def _collect(collector: Collector, progress: Progress) -> Any:
        samples = collector.collect(progress.epoch, progress.env_steps)
        progress.env_steps, progress.new_env_steps = collector.env_steps, collector.new_steps
        return samples

    def _stream(self, split: StreamSplit, progress: Progress) -> StreamFeed:
        sampler, share = self._sampler, self._sampler.workers(progress.epoch)
        taken, self._taken = self._taken, None
        # Another number of ranks has other parts of the stream: then each passes over its share.
        start = progress.samples_in_epoch // (share.workers if share else 1) if taken is None else taken
        sizes = sampler.batch_size, sampler.accumulate
        return StreamFeed(split, share, sampler.comm, sizes, progress.epoch, start, self._loader, self._prepare)


def _close(loaded: Iterator[Any]) -> None:
    close = getattr(loaded, "close", None)
    if close is not None:
        close()
