"""The optimizer of a rank that has a part of the model.

The trainer uses it as the optimizer of the whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.compute.parallel.layout import Mesh
from hvd_train.compute.parallel.whole_state import WholeState
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import ModelOptimizer, State, clip, squared_norm
from hvd_train.gradients.pieces import ELEMENTWISE, WHOLE


class PartOptimizer(ModelOptimizer):
    """Wraps `part`, the strategy's optimizer of this rank's part of the model.

    The ranks of a copy clip by one global norm, skip a step together after an overflow, and save
    one state.
    """

    def __init__(self, part: ModelOptimizer, whole: WholeState, mesh: Mesh) -> None:
        self.model, self.names, self.groups, self.torch = part.model, part.names, part.groups, part.torch
        self._part, self._whole, self._mesh = part, whole, mesh

    def adopt(self) -> None:
        self._part.adopt()

    @torch.no_grad()
    def square(self) -> float:
        counted = [g for name, g in self._gradients().items() if self._whole.is_counted_here(name)]
        square = torch.zeros((), dtype=torch.float64)
        for gradient in counted:
            square += squared_norm(gradient).cpu()
        self._mesh.copy.all_reduce_(square, "sum")
        return float(square)

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        clip(list(self._gradients().values()), self.square(), max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        self._part.agree_(found_inf)
        self._mesh.copy.all_reduce_(found_inf, "max")

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def state(self) -> State:
        return self._whole.gather(self._part.state())

    def load_state(self, state: State) -> None:
        self._part.load_state(self._whole.part(state, self.names.values()))


def check(optimizer: str, tensor: int) -> None:
    """Raise UserError if `optimizer` needs more of the model than a rank has."""
    if optimizer not in ELEMENTWISE | WHOLE:
        raise UserError(
            f"optimizer.name: {optimizer} needs all parameters together, and parallel divides them among ranks; "
            "take another, such as AdamW, or set parallel.pipeline and parallel.tensor to 1"
        )
    if tensor > 1 and optimizer in WHOLE:
        raise UserError(
            f"optimizer.name: {optimizer} needs whole matrices, and parallel.tensor divides them among ranks; "
            "take another, such as AdamW, or set parallel.tensor to 1"
        )
