"""The smallest perturbation, of a list of sizes, at which each sample is classified wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from hvd_train.compute.attacking import Attack, Domain, Norm, Problem, class_scores, cross_entropy, seeds_of, wrong
from hvd_train.compute.calling import scores
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError
from hvd_train.trained.attacking.subject import Subject


@dataclass(frozen=True)
class Threat:
    """What perturbations may be."""

    domain: Domain
    norm: Norm

    def problem(self, subject: Subject, batch: Batch) -> Problem:
        """Return the attack of `batch` without its size; UserError if samples do not have one class each."""
        _check(subject.forward(batch.inputs), batch)
        inputs = batch.inputs
        domain, found = self.domain.to(inputs), seeds_of(inputs)
        return Problem(subject.forward, cross_entropy, inputs, batch.targets, found, domain, 0.0, self.norm)


def levels(problem: Problem, attack: Attack, epsilons: Sequence[float]) -> Tensor:
    """Return the number of the first of the rising `epsilons` at which each sample is wrong.

    It is the length of `epsilons` for samples that are never wrong. A perturbation within a smaller
    epsilon is one within a larger, so a sample that is wrong stays so, and is attacked no more. At
    epsilon 0 the only perturbation is zero.
    """
    level = torch.full((len(problem.inputs),), len(epsilons))
    rows = torch.arange(len(level))
    for number, epsilon in enumerate(epsilons):
        if not len(rows):
            break
        part = replace(problem.select(rows), epsilon=epsilon)
        is_wrong = wrong(part.scores(attack(part) if epsilon else part.zero), part.targets).cpu()
        level[rows[is_wrong]] = number
        rows = rows[~is_wrong]
    return level


def curve(found: Sequence[int], epsilons: Sequence[float]) -> list[float]:
    """Return the share of samples that are right at each of `epsilons`, given their `levels`."""
    return [sum(level > number for level in found) / max(1, len(found)) for number in range(len(epsilons))]


def joined(parts: Sequence[Mapping[str, Sequence[int]]]) -> list[int]:
    """Return the values of all batches in the order of their numbers, given those of each rank."""
    by_number = {int(number): values for part in parts for number, values in part.items()}
    return list(chain.from_iterable(by_number[number] for number in sorted(by_number)))


def _check(outputs: object, batch: Batch) -> None:
    found, targets = scores(outputs), batch.targets
    is_class = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dim() == 1
    if not is_class or not isinstance(found, Tensor) or found.dim() != 2 or class_scores(outputs).shape[1] < 2:
        raise UserError(
            "--method: attacks make classes wrong, so each sample must have one class, and here outputs are "
            f"{shown(found)} and targets {shown(targets)}; take --method corruptions"
        )
