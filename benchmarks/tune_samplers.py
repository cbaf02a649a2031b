"""How good the best of 40 trials is for each sampler of `ddl tune`: `python -m benchmarks.tune_samplers`.

It searches four known functions through the samplers of ddl, with ten seeds each and studies in
memory, and prints the mean of the best values above the minimum, and in how many seeds a sampler is
better than random values.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from cli.search.quiet import quiet
from cli.search.space import Space, parse_space
from hvd_train.config import plugins

Values = dict[str, Any]

BASE = "random"


@dataclass(frozen=True)
class Function:
    """A function to minimise; values are above its minimum."""

    name: str
    space: Space
    value: Callable[[Values], float]


def branin(v: Values) -> float:
    x, y = v["x"], v["y"]
    curve = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return float(curve + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887)


HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(v: Values) -> float:
    x = np.array([v[f"x{i}"] for i in range(6)])
    return float(3.32237 - HARTMANN_ALPHA @ np.exp(-(HARTMANN_A * (x - HARTMANN_P) ** 2).sum(1)))


def ackley(v: Values) -> float:
    """Of the decimal logarithms of two numbers, with the minimum at 1e-2 and 10."""
    x = np.array([math.log10(v["a"]) + 2, math.log10(v["b"]) - 1]) * 4
    return float(
        20 + math.e - 20 * math.exp(-0.2 * math.sqrt((x**2).mean())) - math.exp(np.cos(2 * math.pi * x).mean())
    )


def conditional(v: Values) -> float:
    """A loss after a choice of an optimizer, whose options differ."""
    rate = math.log10(v["lr"])
    if v["name"] == "SGD":
        own = (rate + 1) ** 2 + 4 * (v["momentum"] - 0.9) ** 2
    else:
        own = 0.3 + (rate + 3) ** 2 + (math.log10(v["eps"]) + 8) ** 2 / 20
    return float(own + abs(v["layers"] - 3) / 4 + {"relu": 0.2, "gelu": 0.0, "tanh": 0.4}[v["activation"]])


def functions() -> list[Function]:
    def space(section: dict[str, Any]) -> Space:
        return parse_space(section, [], [], lambda field: field)

    return [
        Function("Branin", space({"x": "uniform(-5, 10)", "y": "uniform(0, 15)"}), branin),
        Function("Hartmann, 6 dimensions", space({f"x{i}": "uniform(0, 1)" for i in range(6)}), hartmann),
        Function("Ackley of logarithms", space({"a": "log(1e-6, 1e2)", "b": "log(1e-4, 1e3)"}), ackley),
        Function(
            "mixed, with conditions",
            space(
                {
                    "lr": "log(1e-5, 1)",
                    "layers": "int(1, 8)",
                    "activation": ["relu", "gelu", "tanh"],
                    "name": ["SGD", "Adam"],
                    "momentum": {"range": "uniform(0, 0.99)", "when": "name=SGD"},
                    "eps": {"range": "log(1e-12, 1e-4)", "when": "name=Adam"},
                }
            ),
            conditional,
        ),
    ]


def best(function: Function, sampler: str, seed: int, trials: int) -> float:
    """Return the best value of a search."""
    import optuna

    with quiet():
        chosen = plugins.create("cli.search.samplers", sampler).optuna(function.space, seed)
        study = optuna.create_study(sampler=chosen)
        for _ in range(trials):
            trial = study.ask()
            study.tell(trial, function.value(function.space.suggest(trial)))
    return study.best_value


def table(samplers: Sequence[str], seeds: int, trials: int) -> str:
    """Return the figures as Markdown."""
    lines = [f"| best of {trials} trials above the minimum | {' | '.join([BASE, *samplers])} |"]
    lines.append("|---" * (len(samplers) + 2) + "|")
    for function in functions():
        base = [best(function, BASE, seed, trials) for seed in range(seeds)]
        cells = [f"{mean(base):.3f}"]
        for sampler in samplers:
            found = [best(function, sampler, seed, trials) for seed in range(seeds)]
            better = sum(own < other for own, other in zip(found, base, strict=True))
            cells.append(f"{mean(found):.3f} ({better} of {seeds} better)")
        lines.append(f"| {function.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", nargs="+", default=["tpe", "gp", "cmaes"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    arguments = parser.parse_args()
    print(table(arguments.samplers, arguments.seeds, arguments.trials))


if __name__ == "__main__":
    main()
