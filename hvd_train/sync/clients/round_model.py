"""The model of the last federated round: clients train from it, and evaluations see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.state import model_state
from hvd_train.state.model_state import as_real
from hvd_train.sync.replicas.flat import FlatParameters, copy_
from hvd_train.sync.view import View

_STATISTICS = "statistics."


class RoundModel(View):
    """The flat parameters and the running statistics of the last round's model, equal on all ranks.

    Running statistics that training has resized on some rank are that rank's own from then on.
    """

    def __init__(self, comm: Communicator) -> None:
        super().__init__()
        self._comm = comm
        self._parameters: list[Tensor] = []
        self.statistics: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Take the running statistics of `model`, which all ranks have alike.

        Before the first `extend`.
        """
        self._model = model
        self.statistics = {name: b.clone() for name, b in model_state.statistics(model).items()}

    def extend(self, flat: FlatParameters) -> None:
        self._flat = flat
        self._parameters += [t.clone() for t in flat.tensors[len(self._parameters) :]]

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors that clients train, and the same tensors of the last round's model.

        Collective.
        """
        now, last = model_state.statistics(self._model), self.statistics
        kept = [name for name, b in now.items() if name in last and last[name].shape == b.shape]
        common = set(kept).intersection(*gather_json(self._comm, kept))
        names = [name for name in kept if name in common]
        return (
            [*self._flat.tensors, *(now[name] for name in names)],
            [*self._parameters, *(last[name] for name in names)],
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model be that of the last round; collective."""
        now, last = self.pairs()
        own = [t.clone() for t in now]
        copy_(now, last)
        try:
            yield
        finally:
            copy_(now, own)

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        return self._flat.named(self._parameters)

    def rank_state(self) -> dict[str, Tensor]:
        return {_STATISTICS + name: b.clone() for name, b in self.statistics.items()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self.statistics = {
            name.removeprefix(_STATISTICS): t.clone() for name, t in state.items() if name.startswith(_STATISTICS)
        }


def update_of(now: Sequence[Tensor], last: Sequence[Tensor]) -> Tensor:
    """Return now - last as one real vector, in float32 at least.

    In half precision, rounding would make an update longer than its clipping norm, and noise
    coarse.
    """
    return _flat(now) - _flat(last)


def add_(tensors: Sequence[Tensor], change: Tensor) -> None:
    """Add `change`, laid out as `update_of` returns it, to `tensors`."""
    parts = [as_real(t) for t in tensors]
    for part, piece in zip(parts, change.split([t.numel() for t in parts]), strict=True):
        part.add_(piece.view(part.shape))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([as_real(t).reshape(-1).to(torch.promote_types(as_real(t).dtype, torch.float32)) for t in tensors])
