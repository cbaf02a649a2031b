"""Differential privacy of federated rounds: the noise, and the record of what has been released."""

from __future__ import annotations

import math
from typing import Any

from hvd_train.comm.objects import broadcast_json
from hvd_train.errors import UserError
from hvd_train.sync.base import Context
from hvd_train.sync.clients import ledger
from hvd_train.sync.clients.accountant import Accountant
from hvd_train.sync.view import View


class Privacy(View):
    """Counts every round in the ledger of the run folder, before its sum is released.

    The ledger is on rank 0's disk. A round that is repeated after a crash counts again. Collective:
    reads what earlier starts of the run have released.
    """

    def __init__(self, context: Context, noise: float, fraction: float, delta: float) -> None:
        super().__init__()
        self._comm, self._folder = context.comm, context.folder
        self._noise, self._fraction, self._delta = noise, fraction, delta
        self._accountant = Accountant()
        processes = _released(context)
        self._accountant.processes = {p: [(n, q, count) for n, q, count in spent] for p, spent in processes.items()}

    def release(self) -> None:
        """Count the round whose sum is about to leave the ranks; collective."""
        self._accountant.add(self._noise, self._fraction)
        if self._folder and self._comm.rank == 0:
            ledger.write(self._folder, self._accountant.processes)
        self._comm.barrier()

    def metrics(self) -> dict[str, float]:
        """Return two values of epsilon.

        `epsilon` holds against outsiders, who see the models. `epsilon_ranks` holds against ranks,
        which also know the clients of each round.
        """
        known = self._accountant.epsilon(self._delta, sampled=False)
        return {"epsilon": self._accountant.epsilon(self._delta), "epsilon_ranks": known}

    def summary(self) -> dict[str, Any]:
        return {"rounds_released": self._accountant.rounds, **self.metrics(), "delta": self._delta}

    def state_dict(self) -> dict[str, Any]:
        return {"spent": [list(entry) for entry in self._accountant.spent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """UserError if no epsilon holds for a run that resumes from `state`."""
        spent = [(noise, fraction, count) for noise, fraction, count in state.get("spent", [])]
        if ledger.rounds(spent) < state.get("merges", 1) or state.get("clients") != self._comm.size:
            raise UserError(
                "--resume: no epsilon holds for this run, whose checkpoint is of other clients or has rounds without noise; "
                "resume on as many ranks and with sync.noise, or start a new run"
            )
        if self._accountant.rounds < ledger.rounds(spent):
            self._accountant.processes = {"checkpoint": spent}


class NoPrivacy(View):
    """Rounds without noise, for which no epsilon holds."""

    def release(self) -> None:
        """Count nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"spent": []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("spent"):
            self.unrestored.append(
                "sync.noise was set, is 0: no epsilon holds for rounds from here on, and none is reported"
            )


def _released(context: Context) -> ledger.Processes:
    """Return what earlier starts of this run have released, from rank 0's disk; collective."""
    answer: list[Any] = []
    if context.comm.rank == 0:
        try:
            answer = [ledger.read(context.folder, context.source), None]
        except UserError as error:
            answer = [{}, str(error)]
    released, problem = broadcast_json(context.comm, answer)
    if problem:
        raise UserError(problem)
    processes: ledger.Processes = released
    return processes


def deviation_of(noise: float, clip: float, ranks: int) -> float:
    """Return the standard deviation of the noise in the sum of updates.

    It is above noise * clip, so that `noise` holds against each of `ranks`, which knows its own
    equal part of the noise.
    """
    return noise * clip * math.sqrt(ranks / max(1, ranks - 1))
