"""The model that evaluations and checkpoints see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.state import model_state
from hvd_train.sync.view import View


@contextmanager
def agreed(model: nn.Module, view: View, comm: Communicator) -> Iterator[None]:
    """Show in `model` what the ranks of `comm` agree on, then restore this rank's own values.

    The call is collective.
    """
    with view.agreed(), _mean_statistics(model, comm):
        yield


@contextmanager
def _mean_statistics(model: nn.Module, comm: Communicator) -> Iterator[None]:
    """Replace running statistics by their mean over ranks.

    Afterwards each rank continues with its own.
    """
    statistics = model_state.common_statistics(model, comm)
    own = [b.clone() for b in statistics]
    for b in statistics:
        comm.all_reduce_(b, "mean")
    try:
        yield
    finally:
        for b, value in zip(statistics, own, strict=True):
            b.copy_(value)
