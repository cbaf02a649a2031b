"""The contract of a reduction: how the gradients of all ranks become the gradients of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from hvd_train.comm.communicator import Communicator

REDUCER = "reducer."
"""Prefix of the names under which checkpoints hold the state of compressors."""


class Stateful(Protocol):
    def state(self) -> dict[str, Tensor]:
        """See `compression.base.Reducer.state`."""


class Reduction(ABC):
    """Reduces the gradients of one model in every step.

    All ranks call `arm` and `reduce` in the same order.
    """

    waited: float = 0.0
    """Seconds of backward passes that were spent waiting for communication."""

    buckets: Sequence[Stateful] = ()
    """The buckets whose compressors have a state, in the same order on every rank."""

    @abstractmethod
    def arm(self) -> None:
        """Announce the last backward pass of the step.

        A gradient that it completes is final and may be sent at once.
        """

    @abstractmethod
    def reduce(self) -> None:
        """Finish the reduction of the step and set `grad` of the parameters that this rank updates.

        A parameter for which no rank has a gradient keeps `grad = None`.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the state of this rank's compressors, as it goes into a checkpoint."""
        return state_of(self.buckets)

    def load_state(self, state: dict[str, Tensor]) -> bool:
        """Restore what `state` returned.

        Return False, and restore nothing, if the buckets or the compressor differ.
        """
        return load_state_of(self.buckets, state)


def state_of(reducers: Iterable[Stateful]) -> dict[str, Tensor]:
    """Return the states of numbered `reducers` under names that begin with `REDUCER`."""
    return {f"{REDUCER}{number}.{name}": t for number, r in enumerate(reducers) for name, t in r.state().items()}


def load_state_of(reducers: Iterable[Stateful], state: dict[str, Tensor]) -> bool:
    """Copy `state` into the tensors of `reducers`.

    Return False, and copy nothing, if names or shapes differ. Names in `state` that do not begin
    with `REDUCER` are ignored.
    """
    own = state_of(reducers)
    saved = {name: t for name, t in state.items() if name.startswith(REDUCER)}
    fits = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in saved.items()}
    for name, tensor in own.items() if fits else ():
        tensor.copy_(saved[name])
    return fits or not saved


def seed_of(seed: int, bucket: int, comm: Communicator) -> int:
    """Return a seed that differs for every rank and bucket, derived from the seed of the run."""
    return (seed << 16 | bucket) * comm.size + comm.rank
