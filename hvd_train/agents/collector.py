"""Collects what one rank learns from: each epoch the agent acts in its copies of the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.agents import noise
from hvd_train.agents.base import ACTIVE, Agent, Lesson, Rollout
from hvd_train.agents.cut import Cut
from hvd_train.agents.figures import Figures
from hvd_train.agents.order import RolloutOrder
from hvd_train.agents.rewards import RewardScale
from hvd_train.comm.communicator import Communicator
from hvd_train.compute.acting import Acting
from hvd_train.data.environments.base import Environments
from hvd_train.data.environments.copies import Copies, episode_seed
from hvd_train.errors import UserError
from hvd_train.models.normalised import Normalised
from hvd_train.state.packing import with_prefix
from hvd_train.sync.membership import Share

_TRAINING = 0
"""The stream of seeds of training episodes."""


@dataclass(frozen=True)
class Samples:
    """The samples of a lesson, as a `Split`."""

    lesson: Lesson

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def __len__(self) -> int:
        return len(next(iter(self.lesson.targets.values())))

    def batch(self, indices: Tensor) -> tuple[Any, dict[str, Tensor]]:
        inputs, targets = self.lesson.inputs, self.lesson.targets
        taken = {n: v[indices] for n, v in inputs.items()} if isinstance(inputs, dict) else inputs[indices]
        return taken, {name: values[indices] for name, values in targets.items()}


class Collector:
    """Acts in the copies of one worker, and lets the agent learn from what follows."""

    def __init__(
        self,
        environments: Environments,
        agent: Agent,
        acting: Acting,
        comm: Communicator,
        share: Share,
        order: RolloutOrder,
        rewards: RewardScale,
        *,
        seed: int,
        batch_size: int,
        env_steps: int | None,
        alone: bool = False,
        cut: Cut | None = None,
    ) -> None:
        """`comm` joins the ranks that learn together, `share` says which worker this rank is.

        `alone`: these ranks collect at the same time, but learn from their own experience only.
        `env_steps` is the length of the run, None if it is not counted in steps of the environment.
        `cut` ends rollouts early, None for none; not the first one of an agent that warms up.
        """
        self._cut, self._alone = cut, alone
        self._of, self._agent, self._acting, self._comm = environments, agent, acting, comm
        self._order, self._rewards, self._seed, self._length = order, rewards, seed, env_steps
        self.batch_size = batch_size
        self.workers = share.workers
        copies = range(share.worker * environments.copies, (share.worker + 1) * environments.copies)
        self._copies = Copies(environments, copies)
        self._rows = range(copies.start * environments.agents, copies.stop * environments.agents)
        order.rows, order.passes = self._rows, agent.passes
        self.figures = Figures()
        self.env_steps = 0
        """Steps of all environments of the run so far."""
        self.new_steps = 0
        """Those of this epoch."""
        self._epoch = -1
        self._lesson: Lesson | None = None
        self.active: Tensor | None = None
        """`Rollout.active` of the last rollout."""
        self._began = False

    @property
    def share(self) -> float:
        return min(1.0, self.env_steps / self._length) if self._length else 0.0

    @property
    def epochs(self) -> int | None:
        """The epochs in which the run collects as many steps as it is long; None without such a length.

        After the first `collect`. Rollouts that are cut lead to further epochs.
        """
        if self._length is None:
            return None
        missing = max(0, self._length - self.env_steps)
        return self._epoch + 1 + -(-missing // (self._of.steps * self._parallel))

    def collect(self, epoch: int, env_steps: int) -> Samples:
        """Return the samples of `epoch`; collective for the ranks that learn together.

        All environments of the run have made `env_steps` steps so far. A lesson of this epoch that
        was resumed is returned as it was.
        """
        self.env_steps = env_steps
        if epoch != self._epoch or self._lesson is None:
            self._acting.begin()
            if isinstance(self._acting.model, Normalised):
                self._acting.model.update(self.sum)
            planned = self._steps(epoch)
            rollout = self._rollout(epoch, planned)
            self.active, self._epoch = rollout.active, epoch
            self._lesson = self._masked(self._agent.learn(rollout, self))
            # An agent may learn from earlier rollouts too.
            self._order.steps = len(Samples(self._lesson)) // max(1, len(self._rows))
            self._order.planned = planned * self._order.steps // len(rollout.rewards)
        samples = Samples(self._lesson)
        self._order.in_order = len(samples) if self._lesson.in_order else 0
        return samples

    def predict(self, observations: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return self._acting.outputs(observations, parameters)

    def parameters(self) -> dict[str, Tensor]:
        return self._acting.parameters()

    def generator(self) -> torch.Generator:
        return noise.learning(self._seed, self._epoch, self._rows)

    def sum(self, values: Tensor) -> Tensor:
        return values if self._alone else self._over_ranks(values)

    def completes(self, every: int) -> bool:
        """Return True if a multiple of `every` steps of all environments lies in this epoch."""
        return self.env_steps // every > (self.env_steps - self.new_steps) // every

    def take_figures(self) -> dict[str, list[float]]:
        """Return the figures of this rank since the last call, as sums and counts."""
        return {**self.figures.take(), **self._agent.figures.take()}

    def state(self) -> dict[str, Tensor]:
        """Return what this rank resumes from."""
        if not self._began:
            return {}
        lesson = self._lesson
        assert lesson is not None
        inputs = lesson.inputs if isinstance(lesson.inputs, dict) else {"": lesson.inputs}
        return {
            "position": torch.tensor(
                [self._epoch, self.new_steps, self._order.steps, self._order.planned, lesson.in_order]
            ),
            **{f"copies.{name}": value for name, value in self._copies.state().items()},
            **{f"agent.{name}": value for name, value in self._agent.state().items()},
            **{f"rewards.{name}": value for name, value in self._rewards.state().items()},
            **{f"inputs.{name}": value for name, value in inputs.items()},
            **{f"targets.{name}": value for name, value in lesson.targets.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Resume from what `state` returned."""
        if not state:
            return
        self._epoch, self.new_steps, self._order.steps, self._order.planned, in_order = state["position"].tolist()
        self._copies.load(with_prefix("copies.", state))
        self._agent.load(with_prefix("agent.", state))
        self._rewards.load(with_prefix("rewards.", state))
        inputs = with_prefix("inputs.", state)
        self._lesson, self._began = Lesson(inputs.get("", inputs), with_prefix("targets.", state), bool(in_order)), True

    def close(self) -> None:
        self._copies.close()
        if self._cut is not None:
            self._cut.close()

    @property
    def _parallel(self) -> int:
        """Copies of the environment on all workers."""
        return self._of.copies * self.workers

    def _steps(self, epoch: int) -> int:
        """Return the steps of each copy in `epoch`; the first one begins with the warm-up."""
        return self._of.steps + (-(-self._agent.warmup // self._parallel) if epoch == 0 else 0)

    def _rollout(self, epoch: int, steps: int) -> Rollout:
        if not self._began:
            self._began = True
            self._copies.start(partial(self._seed_of, epoch, -1))
        began, agent, copies = time.perf_counter(), self._agent, self._copies
        drawn = noise.draw(agent.noise, self._seed, epoch, self._rows, steps)
        observations: list[Any] = []
        actions, outputs, followed, share = [], [], [], self.share
        for step in range(steps):
            observed = torch.from_numpy(copies.observations)
            put_out = self._acting.outputs(observed)
            action = agent.act(put_out, drawn[step], share)
            followed.append(copies.step(action.numpy(), partial(self._seed_of, epoch, step)))
            observations.append(observed)
            actions.append(action)
            outputs.append(put_out)
            if self._cut is not None and steps == self._of.steps and self._cut.ends(epoch, step + 1, steps):
                break
        if self._cut is not None:
            self.figures.add("cut_share", steps - len(outputs), steps)
            self._cut.announce(epoch)
        rewards, following, terminated, ended, there = (
            torch.from_numpy(np.stack(part)) for part in zip(*followed, strict=True)
        )
        active = None if bool(there.all()) else there
        rollout = Rollout(
            torch.stack(observations),
            torch.stack(actions),
            torch.stack(outputs),
            self._rewards.scaled(rewards, ended, self.sum, active),
            following,
            terminated,
            ended,
            active,
        )
        self._count(len(outputs), time.perf_counter() - began)
        if isinstance(self._acting.model, Normalised):
            observed = rollout.observations
            self._acting.model.observe(observed.flatten(0, 1) if active is None else observed[active])
        return rollout

    def _masked(self, lesson: Lesson) -> Lesson:
        """Return `lesson` without the samples of agents whose episode had ended before that of others."""
        if self.active is None:
            return lesson
        if lesson.in_order:
            raise UserError(
                f"agent: agents of '{self._of.name}' end their episodes before others, and this algorithm learns from such "
                "that stay; expected one that learns from whole rollouts, such as ppo"
            )
        return replace(lesson, targets={**lesson.targets, ACTIVE: self.active.flatten()})

    def _over_ranks(self, values: Tensor) -> Tensor:
        if self._comm.size > 1:
            self._comm.all_reduce_(values, "sum")
        return values

    def _seed_of(self, epoch: int, step: int, copy: int) -> int:
        """Return the seed of the episode of the copy number `copy` that begins after `step` of `epoch`."""
        return episode_seed(self._seed, _TRAINING, copy, epoch, step)

    def _count(self, steps: int, seconds: float) -> None:
        own = steps * len(self._copies.numbers)
        of_all = self._over_ranks(torch.tensor([float(own)])) if self._comm.size > 1 else own * self.workers
        self.new_steps = int(of_all)
        self.env_steps += self.new_steps
        self.figures.add("collect_seconds", seconds)
        for episode in self._copies.finished:
            self.figures.add("episode_return", episode.returned)
            self.figures.add("episode_length", episode.length)
            if episode.success is not None:
                self.figures.add("episode_success", episode.success)
        self._copies.finished.clear()
