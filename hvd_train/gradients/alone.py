"""The reduction of a run of one rank."""

from __future__ import annotations

from hvd_train.gradients.reduction import Reduction


class OwnGradients(Reduction):
    """Leaves gradients as they are: no other rank has any."""

    def arm(self) -> None:
        """Do nothing."""

    def reduce(self) -> None:
        """Do nothing: the gradients of this rank are those of the step."""
