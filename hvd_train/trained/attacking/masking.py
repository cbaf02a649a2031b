"""Checks whether gradients lead an attack astray, so that a model only seems to be robust.

The signs are those of Athalye et al., arXiv 1802.00420, and Carlini et al., arXiv 1902.06705: an
attack that knows more, takes more steps or may change more must not be weaker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hvd_train.compute.attacking import Attack, Domain, Norm
from hvd_train.compute.attacks.fgsm import FGSM
from hvd_train.compute.attacks.pgd import PGD
from hvd_train.compute.attacks.square import Square

TOLERANCE = 0.01
"""The difference of accuracies that random starts explain."""
BROKEN = 0.05
"""The accuracy that an attack without limits may leave."""


@dataclass(frozen=True)
class Trial:
    """An attack that the checks compare with others."""

    attack: Attack
    epsilons: Sequence[float]
    """Rising sizes, of which the accuracy under the last one counts."""


def trials(epsilon: float, steps: int, queries: int, norm: Norm, domain: Domain, values: int) -> dict[str, Trial]:
    """Return the attacks of the checks at `epsilon` by name, for inputs with so many `values`."""
    return {
        "single": Trial(FGSM(random_start=False), [epsilon]),
        "iterated": Trial(PGD(steps, None, 1), [epsilon]),
        "longer": Trial(PGD(4 * steps, None, 1), [epsilon]),
        "black_box": Trial(Square(queries, 0.8), [epsilon]),
        "unbounded": Trial(PGD(steps, None, 1), doubled(epsilon, unbounded(norm, domain, values))),
    }


def unbounded(norm: Norm, domain: Domain, values: int) -> float:
    """Return an epsilon with which every raw value can become every other, or that is very large."""
    width = 100.0 if domain.bounds is None else domain.bounds[1] - domain.bounds[0]
    return width if norm == "linf" else width * math.sqrt(values)


def doubled(first: float, last: float) -> list[float]:
    """Return `first`, its doubles below `last`, and `last`.

    Far from the data, softmax in float32 has gradients of exactly zero, so large perturbations alone
    would not be found.
    """
    number = max(0, math.ceil(math.log2(last / first)))
    return [*(first * 2**i for i in range(number)), max(first, last)]


def verdicts(accuracy: Mapping[str, float], epsilon: float, steps: int) -> list[dict[str, object]]:
    """Return the checks of the accuracies that the trials left: name, whether it passed, and a sentence."""
    white_box = min(accuracy["iterated"], accuracy["longer"])

    def percent(name: str) -> str:
        return f"{100 * accuracy[name]:.1f} %"

    checks = [
        (
            "black box",
            accuracy["black_box"] >= white_box - TOLERANCE,
            f"At epsilon {epsilon:g} the black-box attack leaves an accuracy of {percent('black_box')}, and the attacks that see "
            f"gradients leave {100 * white_box:.1f} %: the gradients are masked, and the accuracy under pgd is too high.",
        ),
        (
            "iterated",
            accuracy["iterated"] <= accuracy["single"] + TOLERANCE,
            f"At epsilon {epsilon:g} one step along the gradient leaves an accuracy of {percent('single')}, and {steps} steps "
            f"leave {percent('iterated')}: gradients are masked, or there are too few steps.",
        ),
        (
            "more steps",
            accuracy["longer"] <= accuracy["iterated"] + TOLERANCE,
            f"At epsilon {epsilon:g} {steps} steps leave an accuracy of {percent('iterated')}, and {4 * steps} steps leave "
            f"{percent('longer')}: gradients do not lead to stronger perturbations.",
        ),
        (
            "unbounded",
            accuracy["unbounded"] <= BROKEN,
            f"Perturbations without a limit leave an accuracy of {percent('unbounded')}, expected about 0: gradients are masked.",
        ),
    ]
    return [{"check": name, "passed": passed, "sentence": sentence} for name, passed, sentence in checks]


def most_informative(curve: Sequence[float], epsilons: Sequence[float]) -> float:
    """Return the epsilon above 0 that leaves about half of the clean accuracy, which the checks use."""
    candidates = [number for number, epsilon in enumerate(epsilons) if epsilon > 0]
    return epsilons[min(candidates, key=lambda number: abs(curve[number] - curve[0] / 2))]
