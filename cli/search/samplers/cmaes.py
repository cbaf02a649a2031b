"""CMA-ES (Hansen, 2016), which adapts a normal distribution; for numbers, choices are random."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from cli.search.quiet import quiet
from cli.search.space.domains import Choice
from hvd_train.errors import UserError

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class CMAES:
    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        if all(isinstance(d.domain, Choice) for d in space.dimensions):
            raise UserError(
                "the sampler cmaes searches numbers, and the space has only lists; expected another sampler"
            )
        with quiet():
            return _replaying(seed + trials)

    def pruner(self) -> Pruner | None:
        return None


def _replaying(seed: int) -> optuna.samplers.CmaEsSampler:
    """Return Optuna's sampler, which repeats the generations of the study in place of storing a pickle in it.

    Optuna unpickles the newest optimizer of the study. The journal is a file of the user, from which
    ddl unpickles nothing.
    """
    from optuna._transform import _SearchSpaceTransform
    from optuna.samplers import CmaEsSampler
    from optuna.study import StudyDirection

    class Replaying(CmaEsSampler):
        _newest: Any = None
        """The optimizer of the newest generation that was repeated."""

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            self._study, self._space = study, search_space
            return super().sample_relative(study, trial, search_space)

        def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
            return {}

        def _restore_optimizer(self, completed_trials: Any) -> Any:
            generation = max((t.system_attrs.get(self._attr_key_generation, 0) for t in completed_trials), default=0)
            if generation == 0:
                return None
            trans = _SearchSpaceTransform(self._space, transform_0_1=True)
            optimizer = self._newest
            if optimizer is None or optimizer.dim != len(trans.bounds):
                state = self._cma_rng.rng.get_state()
                optimizer = self._init_optimizer(trans, self._study.direction)
                self._cma_rng.rng.set_state(state)
            sign = 1.0 if self._study.direction == StudyDirection.MINIMIZE else -1.0
            while optimizer.generation < generation:
                told = self._get_solution_trials(completed_trials, optimizer.generation)[: optimizer.population_size]
                if len(told) < optimizer.population_size:
                    break
                optimizer.tell([(trans.transform(t.params), sign * (t.value or 0.0)) for t in told])
                optimizer = copy.deepcopy(optimizer)  # rounds the covariance as Optuna's storing does
            self._newest = optimizer
            return copy.deepcopy(optimizer)

    return Replaying(seed=seed, warn_independent_sampling=False)


def create() -> CMAES:
    return CMAES()
