"""The cost of a run's rounds in differential privacy."""

from __future__ import annotations

import secrets
import warnings
from importlib.util import find_spec

from hvd_train.errors import UserError, install_remedy
from hvd_train.sync.clients import ledger
from hvd_train.sync.clients.ledger import Processes, Spent

ORDERS = [1 + x / 20 for x in range(1, 200)] + list(range(11, 64)) + [2**k for k in range(6, 13)]
"""The orders of Renyi divergence among which the best one gives epsilon."""


class Accountant:
    """Computes epsilon of rounds that release a sum over a Poisson sample of clients plus noise.

    The noise is Gaussian. A client is in a round with probability `fraction`, independently of the
    others. `noise` is the standard deviation of the noise divided by the largest norm of a client's
    part. Neighbouring runs differ in one client. The Renyi divergences of the sampled Gaussian
    mechanism (arXiv 1908.10530) add up over rounds and give epsilon (arXiv 1905.09982). opacus
    computes them.
    """

    def __init__(self) -> None:
        if find_spec("opacus") is None:
            raise UserError(f"sync.noise needs opacus, which is not installed; {install_remedy('privacy')}")
        self.processes: Processes = {}
        """The rounds that each start of the run has released.

        A round that is repeated after a crash counts again.
        """
        self._me = secrets.token_hex(8)

    @property
    def spent(self) -> Spent:
        return [entry for spent in self.processes.values() for entry in spent]

    @property
    def rounds(self) -> int:
        return ledger.rounds(self.spent)

    def add(self, noise: float, fraction: float) -> None:
        """Count one more round."""
        mine = self.processes.setdefault(self._me, [])
        before = mine.pop() if mine and mine[-1][:2] == (noise, fraction) else (noise, fraction, 0)
        mine.append((noise, fraction, before[2] + 1))

    def epsilon(self, delta: float, *, sampled: bool = True) -> float:
        """Return the privacy loss of all rounds: with probability `delta` at most it is larger.

        `sampled`: against an adversary who does not know the clients of each round. Otherwise
        sampling protects nobody.
        """
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(noise, fraction if sampled else 1.0, count) for noise, fraction, count in self.spent]
        with warnings.catch_warnings():
            # opacus warns if the best order is the first or the last. Epsilon holds then too, and
            # is large or near zero.
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta, ORDERS))
