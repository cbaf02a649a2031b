"""The weights that training moves towards zero become zero, whatever their size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hvd_train.slim.criterion import Criterion, Weights

_TOTAL, _BEFORE = "total.", "before."


class Movement(Criterion):
    """Scores a weight by the sum over all steps t of (w_{t+1} - w_t) w_t.

    Sanh et al., arXiv 2005.07683, sum -lr (dL/dw) w, which is the same for plain SGD. Here the step
    is the one of the optimizer, from one choice to the next, of the model that all ranks agree on.
    So the score is defined for every optimizer and sync strategy. A dropped weight does not return.
    """

    def __init__(self) -> None:
        self._total: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def begin(self, weights: Weights) -> None:
        self._before = {name: w.clone() for name, w in weights.items()}

    def scores(self, weights: Weights) -> dict[str, Tensor]:
        for name, w in weights.items():
            before = self._before.get(name, w)
            moved = (w - before) * before
            self._total[name] = self._total[name] + moved if name in self._total else moved
        self._before = {name: w.clone() for name, w in weights.items()}
        return dict(self._total)

    def state(self) -> dict[str, Tensor]:
        total = {_TOTAL + name: t for name, t in self._total.items()}
        return {**total, **{_BEFORE + name: t for name, t in self._before.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for prefix, own in ((_TOTAL, self._total), (_BEFORE, self._before)):
            own |= {n.removeprefix(prefix): t.clone() for n, t in state.items() if n.startswith(prefix)}


def create() -> Criterion:
    return Movement()
