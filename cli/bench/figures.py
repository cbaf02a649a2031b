"""Reported figures, computed from the measured rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]
"""The content of `bench.json`: `what`, `pairs`, `baselines`, `runs`, `targets`, and for scaling
`scaling`."""

Run = dict[str, Any]
"""The result of one launch: `world_size` and `cases`."""

Case = dict[str, Any]
"""`case` is its name, `unavailable` the reason by variant, and `variants` the facts by variant;
`rounds` are seconds per iteration."""


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the lower quartile, the median and the upper quartile; a single value is all three."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("lower", "median", "upper"), found, strict=True))


def ratios(rounds: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the ratio in each round. A slowdown of the whole round cancels out."""
    return [a / b for a, b in zip(rounds, to, strict=True)]


def summarise(case: Case, baselines: dict[str, str]) -> Case:
    """Return `case` with quartiles of seconds and of ratios.

    The ratio to each measured baseline is `over_KEY`.
    """
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
    """Return the median ratio of two variants' times over rounds, or None without both."""
    if not {variant, to} <= case["variants"].keys():
        return None
    return statistics.median(ratios(case["variants"][variant]["rounds"], case["variants"][to]["rounds"]))


def mean_ratio(cases: Sequence[Case], variant: str, to: str) -> float | None:
    """Return the geometric mean of `median_ratio` over cases, or None if one of them is None."""
    found = [median_ratio(case, variant, to) for case in cases]
    known = [value for value in found if value is not None]
    return statistics.geometric_mean(known) if known and len(known) == len(found) else None


def variants(run: Run) -> list[str]:
    """Return the names of the variants that were measured in any case."""
    return sorted({name for case in run["cases"] for name in case["variants"]})


def unavailable(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each variant that was unavailable in some case."""
    reasons = {(name, why) for run in runs for case in run["cases"] for name, why in case["unavailable"].items()}
    return [f"{name} was not measured: {why}" for name, why in sorted(reasons)]


def scaling(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the points of each workload and variant: samples per second by number of ranks."""
    lines = []
    for number, case in enumerate(runs[0]["cases"]):
        for name in case["variants"]:
            found = [(run["world_size"], run["cases"][number]["variants"].get(name)) for run in runs]
            rates = {ranks: ranks * v["samples"] / v["seconds"]["median"] for ranks, v in found if v}
            lines.append({"case": case["case"], "variant": name, "points": points(rates)})
    return lines


def points(rates: dict[int, float]) -> list[dict[str, float]]:
    """Return speed-up and efficiency relative to the first entry of `rates`.

    `rates` maps the number of ranks to samples per second.
    """
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
    """Return a size as text, such as `4 KiB`."""
    return f"{nbytes / 2**10:.4g} KiB" if nbytes < 2**20 else f"{nbytes / 2**20:.4g} MiB"


def duration(seconds: float) -> str:
    """Return a duration with three digits in s, ms or us."""
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if seconds >= s), (1e-6, "us"))
    return f"{seconds / scale:.3g} {unit}"
