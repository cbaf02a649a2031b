"""Adversarial training: a part of the samples of each step is perturbed to increase their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hvd_train.compute.attacking import Attack, Domain, Problem, seeds_of
from hvd_train.compute.calling import caller
from hvd_train.compute.loss import Loss, total
from hvd_train.compute.precision import Precision
from hvd_train.config.schema import AdversarialSection, Config
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError

OPTION = "train.adversarial"
_CHOICE = 2**32
"""The number of the draw that decides whether a sample is perturbed; attacks count theirs from 0."""


class Adversary:
    """Perturbs samples such that the loss on them is large, with the parameters of the current step.

    The minimisation over parameters of a maximum over perturbations is by Madry et al., arXiv
    1706.06083. Perturbations are computed in evaluation mode: dropout is off, and batch normalisation
    uses its running statistics and does not update them. The training pass after it then updates
    them from the perturbed batch.

    Random numbers depend on the seed of the run, the step and the values of the sample. Ranks with
    other parts of a batch, and a resumed run, therefore draw the same ones.
    """

    def __init__(
        self, section: AdversarialSection, model: nn.Module, loss: Loss, precision: Precision, domain: Domain, seed: int
    ) -> None:
        self._attack: Attack = section.create(expected=Attack)
        self._section, self._model, self._loss = section, model, loss
        self._precision, self._domain, self._seed = precision, domain, seed
        self._call = caller(model)

    def perturbed(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        """Return the micro-batches of `step` with perturbed inputs; the model is left in evaluation mode."""
        self._model.eval()
        return [self._perturbed(batch, step) for batch in batches]

    def _perturbed(self, batch: Batch, step: int) -> Batch:
        if not batch.samples:
            return batch
        problem = self._problem(batch, step)
        chosen = problem.uniform(_CHOICE, (1,) * (batch.inputs.dim() - 1)) < self._section.share
        delta = self._attack(problem) * chosen
        return replace(batch, inputs=batch.inputs + problem.domain.scale * delta)

    def _problem(self, batch: Batch, step: int) -> Problem:
        return Problem(
            call=self._forward,
            losses=lambda outputs, _: total(self._loss(outputs, batch)),
            inputs=batch.inputs,
            targets=batch.targets,
            seeds=seeds_of(batch.inputs, self._seed, step),
            domain=self._domain.to(batch.inputs),
            epsilon=self._section.epsilon,
            norm=self._section.norm,
            judged=False,
        )

    def _forward(self, inputs: Tensor) -> Any:
        with self._precision.forward():
            return self._call(inputs)


def check(config: Config, loss: Loss) -> None:
    """Raise UserError if this run cannot train on perturbed samples."""
    section = config.train.adversarial
    assert section is not None
    if config.parallel.pipeline * config.parallel.tensor > 1:
        raise UserError(
            f"{OPTION}: perturbations need the gradient of the whole model on each rank, and parallel divides it; leave "
            f"{OPTION} out, or set parallel.pipeline and parallel.tensor to 1"
        )
    if loss.in_model:
        raise UserError(
            f"{OPTION}: the model takes the targets among its inputs, because train.loss is what it returns; take another loss "
            "(ddl list losses)"
        )
    if section.options.get("restarts", 1) != 1:
        raise UserError(f"{OPTION}.restarts: expected 1 in training, where the loss of single samples is not known")
