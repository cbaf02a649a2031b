"""An exponential moving average of the parameters, which evaluations and checkpoints use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hvd_train.config.schema import EmaSection
from hvd_train.errors import UserError
from hvd_train.state.model_state import FLOATS, as_real
from hvd_train.sync.view import View


class ParameterAverage:
    """Averages the parameters w of this rank: a <- d a + (1 - d) w after each step, from a = w at the start.

    The average is linear in w. If ranks have replicas, the mean of their averages therefore is the
    average of the mean of the replicas. A step that loss scaling skips counts with its unchanged
    parameters. All floating-point parameters are averaged, frozen ones too. Buffers, such as the
    running statistics of batch normalisation, are those of the model itself.
    """

    def __init__(self, section: EmaSection, model: nn.Module, view: View) -> None:
        """Raise UserError if the strategy of `view` has no mean model after each step."""
        if not view.has_model_of_step:
            raise UserError(
                "train.ema: it averages the model of all ranks after each step, which this sync.strategy does not have; "
                "take allreduce, parameter_server or local_sgd, or leave train.ema out"
            )
        self._decay, self._warmup, self._replicas = section.decay, section.warmup, view.replicas
        kinds = {*FLOATS, torch.complex64, torch.complex128}
        self._parameters = {name: p for name, p in model.named_parameters() if p.dtype in kinds}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._loaded = False

    @torch.no_grad()
    def start(self) -> None:
        """Begin at the parameters of the first step, unless a checkpoint has been loaded."""
        if not self._loaded:
            for name, average in self._averages.items():
                average.copy_(self._parameters[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after step number `step`, from 1."""
        averages, now = ([as_real(t.data) for t in each.values()] for each in (self._averages, self._parameters))
        torch._foreach_lerp_(averages, now, 1 - decay(self._decay, step, warmup=self._warmup))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model have the averages, or their mean over replicas; collective."""
        with self._shown(self._mean() if self._replicas else self._averages):
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let the model have the averages, for a checkpoint to be loaded into them."""
        with self._shown(self._averages):
            yield
        self._loaded = True

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages of this rank by name."""
        return iter(self._averages.items())

    def rank_state(self) -> dict[str, Tensor]:
        """Return the averages of this rank by name, if those of ranks differ."""
        return {name: a.clone() for name, a in self._averages.items()} if self._replicas else {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Restore `rank_state`; called after `loading`."""
        for name, average in state.items():
            self._averages[name].copy_(average)

    def _mean(self) -> dict[str, Tensor]:
        assert self._replicas is not None
        means = self.rank_state()
        for mean in means.values():
            self._replicas.all_reduce_(mean, "mean")
        return means

    @contextmanager
    def _shown(self, values: dict[str, Tensor]) -> Iterator[None]:
        # Parameters may lie in memory that ranks share, so their values must stay where they are.
        own = {name: p.data for name, p in self._parameters.items()}
        self._point(values)
        try:
            yield
        finally:
            self._point(own)

    def _point(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.data = values[name]


def decay(most: float, step: int, *, warmup: bool) -> float:
    """Return the weight of the average in the update after `step` steps.

    With `warmup` it grows as (1 + step) / (10 + step) until it reaches `most`, so that the initial
    parameters do not dominate the average of a short run.
    """
    return min(most, (1 + step) / (10 + step)) if warmup else most
