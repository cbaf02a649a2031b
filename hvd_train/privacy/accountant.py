"""What the rounds of a run cost in differential privacy."""

from __future__ import annotations

import secrets
import warnings
from importlib.util import find_spec

from hvd_train.errors import UserError
from hvd_train.privacy import ledger
from hvd_train.privacy.ledger import Processes, Spent

ORDERS = [1 + x / 20 for x in range(1, 200)] + list(range(11, 64)) + [2**k for k in range(6, 13)]
"""Of Renyi divergence: the best of them gives epsilon."""


class Accountant:
    """Epsilon of rounds that each release a sum over a Poisson sample of clients with Gaussian noise.

    A client is in a round with probability `fraction`, independently of the others; neighbouring runs differ by one client
    that takes part or does not; `noise` is the noise's deviation over the largest norm of a client's part. Renyi divergences
    of the sampled Gaussian mechanism (arXiv 1908.10530) add up over rounds and give epsilon (arXiv 1905.09982); opacus computes.
    """

    def __init__(self) -> None:
        if find_spec("opacus") is None:
            raise UserError("sync.noise needs opacus, which accounts for epsilon: pip install 'ddl[privacy]'")
        self.processes: Processes = {}
        """What each start of the run has released. A round that was run again after a crash counts again."""
        self._me = secrets.token_hex(8)

    @property
    def spent(self) -> Spent:
        """Noise, fraction, and how many rounds of both."""
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
        """The loss of privacy that all rounds so far exceed with probability `delta` at most.

        `sampled`: against those who do not know which clients each round has sampled. Without, the sample hides nobody.
        """
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(noise, fraction if sampled else 1.0, count) for noise, fraction, count in self.spent]
        with warnings.catch_warnings():
            # The best order may be the first or the last: then epsilon holds too, and is large anyway or near nothing.
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta, ORDERS))
