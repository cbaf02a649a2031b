"""From what the ranks measured to the figures that are reported."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]
"""All of `bench.json`: `what`, `pairs`, `baselines`, `runs`, `targets`, and `scaling` where that was asked for."""

Run = dict[str, Any]
"""What one launch measured: `world_size`, `cases`."""

Case = dict[str, Any]
"""`case`, its name; `unavailable`, reason by variant; `variants`, by name: `rounds` of seconds, and what never changes."""


def quartiles(values: Sequence[float]) -> dict[str, float]:
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("lower", "median", "upper"), found, strict=True))


def ratios(rounds: Sequence[float], to: Sequence[float]) -> list[float]:
    """One of each round: what slowed a whole round down cancels out."""
    return [a / b for a, b in zip(rounds, to, strict=True)]


def summarise(case: Case, baselines: dict[str, str]) -> Case:
    """`case` with quartiles of each variant's seconds, and of its ratio `over_KEY` to each baseline that was measured."""
    variants = case["variants"]
    known = {f"over_{key}": variants[name] for key, name in baselines.items() if name in variants}
    summarised = {
        name: {
            **variant,
            "seconds": quartiles(variant["rounds"]),
            **{key: quartiles(ratios(variant["rounds"], baseline["rounds"])) for key, baseline in known.items()},
        }
        for name, variant in variants.items()
    }
    return {**case, "variants": summarised}


def median_ratio(case: Case, variant: str, to: str) -> float | None:
    """The median over rounds of one variant's time over another's; None where one of them is not there."""
    if not {variant, to} <= case["variants"].keys():
        return None
    return statistics.median(ratios(case["variants"][variant]["rounds"], case["variants"][to]["rounds"]))


def mean_ratio(cases: Sequence[Case], variant: str, to: str) -> float | None:
    """The geometric mean over cases of `median_ratio`; None where one of them is None."""
    found = [median_ratio(case, variant, to) for case in cases]
    known = [value for value in found if value is not None]
    return statistics.geometric_mean(known) if known and len(known) == len(found) else None


def variants(run: Run) -> list[str]:
    """Names of those that were measured in any case."""
    return sorted({name for case in run["cases"] for name in case["variants"]})


def unavailable(runs: Sequence[Run]) -> list[str]:
    """A sentence for each variant that could not be measured somewhere."""
    reasons = {(name, why) for run in runs for case in run["cases"] for name, why in case["unavailable"].items()}
    return [f"{name} was not measured: {why}" for name, why in sorted(reasons)]


def scaling(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One line of points a workload and variant: samples per second on more and more ranks, beside its own first run."""
    lines = []
    for number, case in enumerate(runs[0]["cases"]):
        for name in case["variants"]:
            found = [(run["world_size"], run["cases"][number]["variants"].get(name)) for run in runs]
            rates = {ranks: ranks * v["samples"] / v["seconds"]["median"] for ranks, v in found if v}
            lines.append({"case": case["case"], "variant": name, "points": points(rates)})
    return lines


def points(rates: dict[int, float]) -> list[dict[str, float]]:
    """Speed-up and efficiency of samples per second, by number of ranks, over the first of them."""
    first, base = next(iter(rates.items()))
    return [
        {
            "world_size": n,
            "samples_per_second": rate,
            "speedup": first * rate / base,
            "efficiency": first * rate / base / n,
        }
        for n, rate in rates.items()
    ]


def size(nbytes: int) -> str:
    """`4 KiB`."""
    return f"{nbytes / 2**10:.4g} KiB" if nbytes < 2**20 else f"{nbytes / 2**20:.4g} MiB"


def duration(seconds: float) -> str:
    """Three digits, in the unit that fits."""
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if seconds >= s), (1e-6, "us"))
    return f"{seconds / scale:.3g} {unit}"
