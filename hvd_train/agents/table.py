"""Updates of a table of action values: what the tabular agents have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvd_train.agents.action_values import choices
from hvd_train.agents.base import AgentContext, Learner, Lesson
from hvd_train.errors import UserError


class TableUpdates:
    """Moves each entry of a table by the mean temporal-difference error of its visits in an epoch.

    The errors are those of the table at the start of the epoch, and the visits those of all ranks
    that learn together. An entry with m visits moves by 1 - (1 - rate)^m of the mean error, as if
    they had followed one another. So neither the number of ranks nor that of copies changes what a
    visit is worth. `rate` is divided by (1 + earlier visits)^power: with a power above 0.5 and up to
    1 the values of a random environment converge (Even-Dar and Mansour 2003).
    """

    def __init__(self, context: AgentContext, name: str, rate: float, power: float) -> None:
        """Raise UserError if observations are no states, or actions no choices."""
        self._choices = choices(context, name)
        if not context.states:
            raise UserError(
                f"agent: '{name}' learns a table of states, and observations have the shape {context.observed}; it takes "
                "environments whose observation is one of n states (Discrete); take dqn or ppo"
            )
        self._rate, self._power = rate, power
        self._visits = torch.zeros(context.states * self._choices, dtype=torch.float64)
        """Visits of each entry in earlier epochs, of all ranks."""

    def lesson(self, observations: Tensor, actions: Tensor, errors: Tensor, learner: Learner) -> Lesson:
        """Return the samples of an epoch; collective. All tensors begin with `(steps, rows)`.

        The trainer divides the gradient of a step by the samples of all ranks, and the optimizer
        subtracts it (SGD with lr 1.0), so that a sample weighs as many times as much.
        """
        entries = (observations.argmax(-1) * self._choices + actions).flatten()
        steps = torch.arange(len(entries)) // learner.batch_size
        own = torch.bincount(entries, minlength=len(self._visits)).double()
        visits = learner.sum(own)
        # Rollouts that are cut differ in length: room for the steps of the longest possible one.
        most = -(-int(visits.sum()) // learner.batch_size)
        samples = learner.sum(torch.bincount(steps, minlength=most).double())
        rates = self._rate / (1 + self._visits) ** self._power
        shares = (1 - (1 - rates) ** visits) / visits.clamp(min=1)
        self._visits += visits
        moves = shares[entries] * samples[steps] * errors.flatten()
        targets = {"actions": actions.flatten(), "moves": moves}
        return Lesson(observations.flatten(0, 1), targets, in_order=True)

    def loss(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return a loss that is linear in the table: no step changes the errors of a later one."""
        return -(targets["moves"] * outputs.gather(1, targets["actions"].unsqueeze(1)).squeeze(1)).sum()

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes from."""
        return {"visits": self._visits}

    def load(self, state: dict[str, Tensor]) -> None:
        self._visits = state["visits"].clone()
