"""The optimizer of a rank that has a part of the model, to the trainer as if it were that of all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.optimizer import ModelOptimizer, State, clip
from hvd_train.parallel.layout import Mesh
from hvd_train.parallel.pieces import Pieces
from hvd_train.sharding import ELEMENTWISE, WHOLE


class PartOptimizer(ModelOptimizer):
    """`part`, the strategy's optimizer of this rank's part, made to clip, skip and save as one with those of the other parts."""

    def __init__(self, part: ModelOptimizer, pieces: Pieces, mesh: Mesh) -> None:
        self.model, self.names, self.torch = part.model, part.names, part.torch
        self._part, self._pieces, self._mesh = part, pieces, mesh

    def adopt(self) -> None:
        self._part.adopt()

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = [
            torch.linalg.vector_norm(g).double().cpu() for name, g in gradients.items() if self._pieces.counts(name)
        ]
        square = torch.stack([torch.zeros((), dtype=torch.float64), *norms]).square().sum()
        self._mesh.copy.all_reduce_(square, "sum")
        clip(list(gradients.values()), square, max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        self._part.agree_(found_inf)
        self._mesh.copy.all_reduce_(found_inf, "max")

    def state(self) -> State:
        return self._pieces.gather(self._part.state())

    def load_state(self, state: State) -> None:
        self._part.load_state(self._pieces.mine(state, self.names.values()))


def check(optimizer: str, tensor: int) -> None:
    """UserError where `optimizer` needs more of the model than a rank has."""
    if optimizer not in ELEMENTWISE | WHOLE:
        raise UserError(
            f"optimizer.name: {optimizer} looks at all parameters together, of which ranks have parts; "
            "take another, such as AdamW, or set parallel.pipeline and parallel.tensor to 1"
        )
    if tensor > 1 and optimizer in WHOLE:
        raise UserError(
            f"optimizer.name: {optimizer} looks at whole matrices, of which ranks have parts; "
            "take another, such as AdamW, or set parallel.tensor to 1"
        )
