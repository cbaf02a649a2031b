"""What a task explained, as JSON and as a table with a verdict."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from hvd_train.text import strict_json
from hvd_train.text.display import console
from hvd_train.text.names import printable

TOLERANCE = 0.01
FEW = 8
"""Parts of a sample below which two random maps often have the same order."""
SHOWN = 3
"""Parts that the table names."""


def json(found: Mapping[str, Any]) -> str:
    """Return all figures, with the sentences of the table."""
    return strict_json.dumps({**found, "verdict": list(verdict(found))}, indent=1) + "\n"


def text(found: Mapping[str, Any], width: int | None) -> str:
    """Return a row for each sample, and what the figures mean."""
    file = io.StringIO()
    shown = console(file=file, width=width)
    shown.print(_table(found))
    for sentence in verdict(found):
        shown.print(printable(sentence))
    return file.getvalue()


def verdict(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on completeness, and on the control with permuted weights."""
    yield from _completeness(found)
    yield from _control(found)


def strongest(sample: Mapping[str, Any], count: int) -> list[tuple[str, str | None, float]]:
    """Return the parts of a sample with the largest attributions, with their values if they have any."""
    parts = [
        (part, values[n] if (values := field.get("values")) else None, attribution)
        for field in sample["fields"]
        if "attributions" in field
        for n, (part, attribution) in enumerate(zip(field["parts"], field["attributions"], strict=True))
    ]
    return sorted(parts, key=lambda part: -abs(part[2]))[:count]


def title(sample: Mapping[str, Any]) -> str:
    """Return what is explained, how likely it is, and the true class if it is another."""
    probability = "" if sample["probability"] is None else f" ({sample['probability']:.0%})"
    wrong = "" if is_right(sample) else f", is {_short(sample['class'])}"
    return printable(f"{_short(sample['explained'])}{probability}{wrong}")


def is_right(sample: Mapping[str, Any]) -> bool:
    """Return False if the sample has a class, and another output is explained."""
    return sample["class"] in (None, sample["explained"])


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = [
        "sample",
        "class",
        "predicted",
        "explained",
        "probability",
        "score",
        "change",
        "error",
        "steps",
        "rank corr.",
    ]
    parts = any(strongest(sample, 1) for sample in found["samples"])
    for name in [*names, *(["strongest parts"] if parts else [])]:
        table.add_column(
            name, justify="left" if name in {"class", "predicted", "explained", "strongest parts"} else "right"
        )
    for sample in found["samples"]:
        table.add_row(*map(printable, _row(sample, parts)))
    return table


def _row(sample: Mapping[str, Any], parts: bool) -> list[str]:
    error, like = sample["completeness_error"], sample["rank_correlation"]
    return [
        str(sample["sample"]),
        *(_short(sample[name]) for name in ("class", "predicted", "explained")),
        "-" if sample["probability"] is None else f"{sample['probability']:.3f}",
        f"{sample['score']:.4g}",
        f"{sample['change']:+.4g}",
        "-" if error is None else f"{error:.2%}",
        "-" if sample["steps"] is None else str(sample["steps"]),
        "-" if like is None else f"{like:+.2f}",
        *([", ".join(f"{_short(part)} {value:+.2g}" for part, _, value in strongest(sample, SHOWN))] if parts else []),
    ]


def _short(word: str | None) -> str:
    if word is None:
        return "-"
    quoted = word if word.strip() == word and word.isprintable() and word else repr(word)
    return quoted if len(quoted) <= 20 else f"{quoted[:17]}..."


def _completeness(found: Mapping[str, Any]) -> Iterator[str]:
    errors = {s["sample"]: s["completeness_error"] for s in found["samples"]}
    if None in errors.values():
        yield f"completeness: {found['method']} does not divide the change of the score, so its values have no sum"
        return
    worst, over = max(errors.values()), [str(n) for n, error in errors.items() if error > TOLERANCE]
    if not found["promises_completeness"]:
        yield f"completeness: the sum of the values is off by {worst:.1%} at most; {found['method']} promises none"
    elif over:
        yield f"completeness: the error is above 1 % for the samples {', '.join(over)}; do not read their values as shares"
    else:
        yield f"completeness: the values add up to the change of the score on all samples (error at most {worst:.2%})"


def _control(found: Mapping[str, Any]) -> Iterator[str]:
    known = [s["rank_correlation"] for s in found["samples"] if s["rank_correlation"] is not None]
    fewest = min(s["parts"] for s in found["samples"])
    if not known:
        yield "control: the maps of permuted weights have equal values only, so their ranks cannot be compared"
        return
    mean = sum(known) / len(known)
    figure = f"control: the mean rank correlation with the maps of permuted weights is {mean:+.2f}"
    if fewest < FEW:
        yield f"{figure}; samples have {fewest} parts, of which random maps often have the same order"
    elif abs(mean) >= found["similar"]:
        yield f"{figure}: the maps hardly depend on what the model has learned"
    else:
        yield f"{figure}: the maps depend on what the model has learned"
