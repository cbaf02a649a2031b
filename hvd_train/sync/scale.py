"""How the losses of samples and ranks add up to the objective of a step."""

from __future__ import annotations

import torch

from hvd_train.comm.communicator import Communicator


class GradientScale:
    """Every unit of the step counts the same; the gradient of the step is the sum over ranks.

    The units are what the loss sums over: samples, or tokens.
    """

    sums = True
    """True if the gradient of a step is the mean over the units of all ranks."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    def total(self, own: float) -> float:
        """Return the units of all ranks in a step in which this rank has `own`; collective."""
        out = torch.tensor(own, dtype=torch.float64)
        self.comm.all_reduce_(out, "sum")
        return float(out)

    def divisor(self, own: float, total: float) -> float:
        """Return what this rank divides its sum of losses by; positive.

        The rank has `own` units in the step, and all ranks together have `total`.
        """
        return total or 1

    def objective(self, part: float) -> float:
        """Return the value that the step minimises, given this rank's `part` of it; collective."""
        value = torch.tensor(part, dtype=torch.float64)
        self.comm.all_reduce_(value, "sum")
        return float(value)


class OwnMean(GradientScale):
    """Each rank minimises the mean loss of its own units."""

    sums = False
    units: float = 0
    """The number of this rank's units in the step."""

    def total(self, own: float) -> float:
        return own

    def divisor(self, own: float, total: float) -> float:
        self.units = own
        return own or 1

    def objective(self, part: float) -> float:
        return part


class EqualRanks(GradientScale):
    """Every rank counts the same, however many units it has.

    A rank without units does not count.
    """

    sums = False

    def total(self, own: float) -> float:
        return own

    def divisor(self, own: float, total: float) -> float:
        ranks = torch.tensor(int(own > 0))
        self.comm.all_reduce_(ranks, "sum")
        return (own or 1) * max(int(ranks), 1)
