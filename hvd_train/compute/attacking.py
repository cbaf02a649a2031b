"""The contract of an attack: changes of inputs, bounded in size, that make a model err.

An attack is a file in `hvd_train/compute/attacks` whose `create(**options)` returns an `Attack`. An
attack sees a `Problem`: a batch, the model in evaluation mode, and what may change. Its random
numbers come from the seeds of single samples, so that the division into batches and ranks does not
change them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.data.seeding import sample_seed

Norm = Literal["linf", "l2"]

_TINY = 1e-12
"""Keeps the division by the norm of a gradient that is zero finite."""


@dataclass(frozen=True)
class Domain:
    """The units in which a perturbation is measured, and the values that inputs may have.

    A perturbation `delta` makes the input `x` of the model `x + scale * delta`. So the standardisation
    of the data is a part of what is attacked, and a perturbation of zero changes no bit.
    """

    unit: str
    """What epsilon counts, for reports."""
    scale: Tensor
    """Units of the model's input in one unit of `delta`, for a sample; 0 where nothing may change."""
    offset: Tensor
    """`x / scale + offset` is the raw value."""
    bounds: tuple[float, float] | None = None
    """The smallest and the largest raw value; None without bounds."""

    def to(self, x: Tensor) -> Domain:
        """Return the domain on the device and in the dtype of `x`."""
        return replace(self, scale=self.scale.to(x), offset=self.offset.to(x))


@dataclass(frozen=True)
class Problem:
    """A batch under attack. Perturbations have the shape of `inputs`, (n, ...).

    `losses` takes outputs and the problem, and returns what the attack increases: one value for
    each sample, or in training their sum.
    """

    call: Callable[[Tensor], Any]
    """Calls the model, in evaluation mode, with inputs."""
    losses: Callable[[Any, Problem], Tensor]
    inputs: Tensor
    targets: Any
    seeds: Sequence[int]
    """A seed for each sample."""
    domain: Domain
    epsilon: float
    """The largest norm of the perturbation of a sample."""
    norm: Norm = "linf"
    judged: bool = True
    """True if targets are classes, of which an attack reports a wrong one that it has found.

    False in training, where an attack returns the point at which it ends.
    """

    def select(self, rows: Tensor) -> Problem:
        """Return the problem of the samples at `rows` (int64)."""
        seeds = [self.seeds[row] for row in rows.tolist()]
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows], seeds=seeds)

    @property
    def zero(self) -> Tensor:
        """The perturbation that changes nothing."""
        return torch.zeros_like(self.inputs)

    def outputs(self, delta: Tensor) -> Any:
        """Return the outputs of the model for perturbed inputs."""
        return self.call(self.inputs + self.domain.scale * delta)

    @torch.no_grad()
    def scores(self, delta: Tensor) -> Tensor:
        """Return the scores of classes (n, classes) for perturbed inputs."""
        return class_scores(self.outputs(delta))

    def ascent(
        self, delta: Tensor, losses: Callable[[Any, Problem], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the gradient of the losses with respect to `delta`, the losses, and the outputs at `delta`.

        The parameters of the model get no gradient, and their hooks do not run.
        """
        with torch.enable_grad():
            variable = delta.detach().requires_grad_()
            outputs = self.outputs(variable)
            values = (losses or self.losses)(outputs, self)
            (gradient,) = torch.autograd.grad(values.sum(), variable)
        return gradient, values.detach(), outputs

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the steepest ascent of norm 1 for each sample."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / per_sample(gradient.flatten(1).norm(dim=1), gradient).clamp(min=_TINY)

    def project(self, delta: Tensor) -> Tensor:
        """Return the perturbation, within epsilon and such that raw values stay in their bounds."""
        if self.norm == "linf":
            delta = delta.clamp(-self.epsilon, self.epsilon)
        else:
            length = per_sample(delta.flatten(1).norm(dim=1), delta)
            delta = delta * (self.epsilon / length.clamp(min=_TINY)).clamp(max=1)
        if self.domain.bounds is None:
            return delta
        # A value in bounds moves towards its clean one, so the norm does not grow.
        raw = self.inputs / self.domain.scale + self.domain.offset
        low, high = self.domain.bounds
        return delta.clamp(min=(low - raw).clamp(max=0), max=(high - raw).clamp(min=0))

    def start(self, number: int) -> Tensor:
        """Return random perturbations within epsilon, of which `number` counts the restarts."""
        drawn = self.uniform(number, self.inputs.shape[1:]).mul(2).sub(1) * (self.domain.scale != 0)
        if self.norm == "l2":
            drawn = self.direction(drawn) * per_sample(self.uniform(number, (1,))[:, 0], drawn)
        return self.project(drawn * self.epsilon)

    def uniform(self, number: int, shape: Sequence[int]) -> Tensor:
        """Return random numbers (n, *shape) in [0, 1), which depend on the sample and `number`."""
        drawn = [torch.rand(*shape, generator=_generator(seed, number)) for seed in self.seeds]
        return torch.stack(drawn).to(self.inputs)


class Attack(ABC):
    """Searches a perturbation that increases the losses of each sample."""

    @abstractmethod
    def __call__(self, problem: Problem) -> Tensor:
        """Return a perturbation for each sample, within the limits of the problem.

        It is one that makes the class of the sample wrong, if the attack found one.
        """


def seeds_of(inputs: Tensor, *key: int) -> list[int]:
    """Return a seed for each sample, which depends on the values of the sample and on `key`.

    It is equal wherever the sample is: on any rank, in any batch, and after a resume.
    """
    contents = (hashlib.blake2b(x.numpy().tobytes(), digest_size=8).digest() for x in inputs.cpu())
    return [sample_seed(*key, int.from_bytes(content, "little")) for content in contents]


def cross_entropy(outputs: Any, problem: Problem) -> Tensor:
    """Return the cross entropy of each sample."""
    return torch.nn.functional.cross_entropy(class_scores(outputs), problem.targets, reduction="none")


def class_scores(outputs: Any) -> Tensor:
    """Return the scores (n, classes) among the outputs of a model, in float32 at least."""
    return wide(scores(outputs))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` (n,) in a shape that broadcasts with `like` (n, ...)."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def margins(found: Tensor, targets: Tensor) -> Tensor:
    """Return by how much the score of the target exceeds the largest other score, (n,)."""
    other = found.scatter(1, targets[:, None], -torch.inf)
    return found.gather(1, targets[:, None])[:, 0] - other.max(1).values


def wrong(found: Tensor, targets: Tensor) -> Tensor:
    """Return which of `found` (n, classes) have another class than `targets` as the first largest score."""
    return found.argmax(1) != targets


class Strongest:
    """Keeps the strongest perturbation of each sample: one that is wrong, otherwise that of the largest loss."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.delta = problem.zero
        self._rank = torch.full((len(problem.inputs),), -torch.inf, device=problem.inputs.device)

    @property
    def survivors(self) -> Tensor:
        """The positions of the samples of which no perturbation was wrong (int64)."""
        return torch.nonzero(self._rank != torch.inf)[:, 0]

    def offer(self, rows: Tensor, delta: Tensor, found: Tensor, losses: Tensor) -> None:
        """Consider `delta`, with its scores and losses, for the samples at `rows`."""
        rank = losses.float().where(~wrong(found, self._problem.targets[rows]), torch.inf)
        better = rank > self._rank[rows]
        self._rank[rows[better]] = rank[better]
        self.delta[rows[better]] = delta[better].detach()


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(sample_seed(seed, number))
