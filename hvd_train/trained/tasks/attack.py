"""Measures the accuracy of a model under attacks and under corruptions of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hvd_train.comm.agree import together
from hvd_train.comm.objects import gather_json
from hvd_train.compute.attacking import Attack, Norm
from hvd_train.compute.domain import PIXELS, domain
from hvd_train.compute.metrics.accuracy import correct
from hvd_train.config import plugins
from hvd_train.config.options import Annotated, Field, Literal, NonNegativeFloat, PositiveInt
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.trained.attacking import corrupting, masking
from hvd_train.trained.attacking.corrupting import Corruptions
from hvd_train.trained.attacking.robustness import Threat, curve, joined, levels
from hvd_train.trained.attacking.subject import Subject, plan
from hvd_train.trained.restore import Trained, on_split, restore

ATTACKS = "hvd_train.compute.attacks"
CORRUPTIONS = "corruptions"
ALL = "all together"

EPSILONS = {
    (PIXELS, "linf"): [0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3],
    (PIXELS, "l2"): [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0],
}
OTHER_EPSILONS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
CHECKED = 2
"""Batches that the checks for masked gradients use."""


@dataclass(frozen=True)
class RobustAccuracy:
    """The task. `options` are those of attacks, by name; an attack takes those that it has."""

    methods: Sequence[str]
    epsilons: Sequence[float]
    norm: Norm
    options: Mapping[str, int]
    samples: int | None
    split: str

    def run(self, context: TaskContext) -> dict[str, Any]:
        trained = restore(context)
        split = on_split(trained, self.split)
        subject = Subject(trained, split, plan(split, self.samples), context.comm)
        if not subject.plan:
            raise UserError(f"--split: '{self.split}' has no samples; hold some out, or take --split train")
        methods = self.methods or _default(trained)
        attacks = [name for name in methods if name != CORRUPTIONS]
        result: dict[str, Any] = {
            "checkpoint": str(context.checkpoint),
            "split": self.split,
            "samples": sum(map(len, subject.plan)),
            "attacks": self._attacked(context, subject, attacks) if attacks else None,
            "corruptions": self._corrupted(context, subject) if CORRUPTIONS in methods else None,
        }
        return result

    def _attacked(self, context: TaskContext, subject: Subject, names: Sequence[str]) -> dict[str, Any]:
        threat = together(context.comm, partial(self._threat, subject.trained))
        chosen = {name: _attack(name, self.options) for name in names}
        given = self.epsilons or EPSILONS.get((threat.domain.unit, self.norm), OTHER_EPSILONS)
        epsilons = sorted({0.0, *given})
        found = self._levels(context, subject, threat, {name: (a, epsilons) for name, a in chosen.items()}, "attacked")
        if len(names) > 1:
            found[ALL] = [min(levels_) for levels_ in zip(*found.values(), strict=True)]
        curves = {name: curve(of_samples, epsilons) for name, of_samples in found.items()}
        checks = self._checks(context, subject, threat, [*curves.values()][-1], epsilons)
        return {"norm": self.norm, "unit": threat.domain.unit, "epsilon": epsilons, "accuracy": curves, **checks}

    def _threat(self, trained: Trained) -> Threat:
        try:
            of_inputs = domain(trained.built.data, trained.execution.label)
        except UserError as error:
            raise UserError(f"--method: {error}") from None
        return Threat(of_inputs, self.norm)

    def _levels(
        self,
        context: TaskContext,
        subject: Subject,
        threat: Threat,
        attacks: Mapping[str, tuple[Attack, Sequence[float]]],
        text: str,
    ) -> dict[str, list[int]]:
        """Return the levels of all samples under each attack, in the order of the samples; collective."""
        with context.progress(f"batches {text}", len(subject.own) * len(attacks)) as advance:
            own = together(context.comm, partial(_own_levels, subject, threat, attacks, advance))
        parts = gather_json(context.comm, own)
        return {name: joined([part[name] for part in parts]) for name in attacks}

    def _checks(
        self, context: TaskContext, subject: Subject, threat: Threat, worst: Sequence[float], epsilons: Sequence[float]
    ) -> dict[str, Any]:
        """Return the checks for masked gradients on the first batches; nothing if all epsilons are 0."""
        if not any(epsilons):
            return {"checked_at": None, "checks": []}
        epsilon = masking.most_informative(worst, epsilons)
        steps, queries = self.options.get("steps", 10), self.options.get("queries", 500)
        values = subject.trained.built.sample.inputs[0].numel()
        trials = masking.trials(epsilon, steps, queries, self.norm, threat.domain, values)
        few = replace(subject, plan=subject.plan[:CHECKED])
        tried = {name: (trial.attack, trial.epsilons) for name, trial in trials.items()}
        found = self._levels(context, few, threat, tried, "checked for masked gradients")
        left = {name: curve(of_samples, trials[name].epsilons)[-1] for name, of_samples in found.items()}
        return {"checked_at": epsilon, "checks": masking.verdicts(left, epsilon, steps)}

    def _corrupted(self, context: TaskContext, subject: Subject) -> dict[str, Any]:
        trained = subject.trained
        first = trained.execution.prepare(trained.built.sample.whole)
        find = partial(corrupting.corruptions, trained.built.data, trained.execution.label, first)
        found = together(context.comm, find)
        with context.progress("corruptions of batches", len(subject.own) * len(found.names)) as advance:
            own = together(context.comm, partial(_own_corrupted, subject, found, advance))
        means = corrupting.means(gather_json(context.comm, own))
        (clean,) = means.pop("clean")
        values = [value for of_severities in means.values() for value in of_severities]
        metric = "accuracy" if correct(subject.forward(first.inputs), first.targets) is not None else "loss"
        return {
            "kind": found.kind,
            "metric": metric,
            "clean": clean,
            "by_severity": means,
            "mean": sum(values) / len(values),
        }


def _default(trained: Trained) -> Sequence[str]:
    """Return the methods that fit the data: attacks need a class for each sample, and numbers as inputs.

    No corruptions of observations are known.
    """
    data = trained.built.data
    if "agent" in data.preprocessing:
        if data.spec.task != "classification":
            raise UserError(
                "the actions of the agent are numbers, and attacks make choices wrong: there is nothing to attack"
            )
        return ["fgsm", "pgd"]
    return ["fgsm", "pgd", CORRUPTIONS] if data.spec.task == "classification" else [CORRUPTIONS]


def _attack(name: str, options: Mapping[str, int]) -> Attack:
    known = plugins.options(ATTACKS, name).model_fields
    attack: Attack = plugins.create(ATTACKS, name, **{key: value for key, value in options.items() if key in known})
    return attack


def _own_levels(
    subject: Subject,
    threat: Threat,
    attacks: Mapping[str, tuple[Attack, Sequence[float]]],
    advance: Callable[[], None],
) -> dict[str, dict[str, list[int]]]:
    """Return the levels of this rank's samples, by attack and number of the batch."""
    found: dict[str, dict[str, list[int]]] = {name: {} for name in attacks}
    for number, batch in subject.batches():
        problem = threat.problem(subject, batch)
        for name, (attack, epsilons) in attacks.items():
            found[name][str(number)] = levels(problem, attack, epsilons).tolist()
            advance()
    return found


def _own_corrupted(subject: Subject, found: Corruptions, advance: Callable[[], None]) -> dict[str, Any]:
    return {str(number): corrupting.of_batch(subject, batch, found, advance) for number, batch in subject.batches()}


def create(
    *,
    methods: Annotated[list[str], "names of attacks, and corruptions; empty: those that fit the data"] = [],
    epsilons: Annotated[list[NonNegativeFloat], "sizes of perturbations; empty: those of the kind of data"] = [],
    norm: Annotated[Literal["linf", "l2"], "what the size of a perturbation is"] = "linf",
    steps: Annotated[PositiveInt | None, "steps of attacks along the gradient"] = None,
    restarts: Annotated[PositiveInt | None, "random starts of attacks"] = None,
    queries: Annotated[PositiveInt | None, "forward passes of the square attack"] = None,
    samples: Annotated[PositiveInt | None, "largest number of samples, at equal distances"] = None,
    split: Annotated[str, Field(min_length=1), "samples that are attacked"] = "test",
) -> RobustAccuracy:
    given = {"steps": steps, "restarts": restarts, "queries": queries}
    options = {key: value for key, value in given.items() if value is not None}
    return RobustAccuracy(methods, epsilons, norm, options, samples, split)
