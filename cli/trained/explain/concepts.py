"""What a classifier knows of concepts: a table, a verdict, and a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from hvd_train.text import strict_json
from hvd_train.text.display import console
from hvd_train.text.names import printable

LEVEL = 0.05
"""The p-value below which a score is called different from that of random examples."""
CHANCE = 0.6
"""The accuracy below which a vector hardly separates the examples of a concept."""


def json(found: Mapping[str, Any]) -> str:
    """Return all figures, with the sentences of the table."""
    return strict_json.dumps({**found, "verdict": list(verdict(found))}, indent=1) + "\n"


def text(found: Mapping[str, Any], width: int | None) -> str:
    """Return a row for each concept and class, and what the figures mean."""
    table = Table(box=None, pad_edge=False)
    for name in ("concept", "class", "TCAV score", "deviation", "random", "p", "accuracy"):
        table.add_column(name, justify="left" if name in {"concept", "class"} else "right")
    for row in found["rows"]:
        figures = (f"{row[name]:.2f}" for name in ("score", "deviation", "random"))
        table.add_row(
            printable(row["concept"]), printable(row["class"]), *figures, f"{row['p']:.2g}", f"{row['accuracy']:.2f}"
        )
    file = io.StringIO()
    shown = console(file=file, width=width)
    shown.print(table)
    for sentence in verdict(found):
        shown.print(printable(sentence))
    return file.getvalue()


def verdict(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each concept: the classes that it speaks for and against."""
    for name in found["concepts"]:
        rows = [row for row in found["rows"] if row["concept"] == name]
        if rows[0]["accuracy"] < CHANCE:
            yield f"{name}: layer {found['layer']} hardly knows it (accuracy {rows[0]['accuracy']:.2f}), so its scores say little"
            continue
        differ = [row for row in rows if row["p"] < LEVEL]
        sides = {
            "for": [row["class"] for row in differ if row["score"] > row["random"]],
            "against": [row["class"] for row in differ if row["score"] < row["random"]],
        }
        said = [f"{side} {', '.join(classes)}" for side, classes in sides.items() if classes]
        yield f"{name}: speaks {' and '.join(said)}" if said else f"{name}: no class differs from random examples"


def save(heading: str, found: Mapping[str, Any], folder: Path) -> None:
    """Write report.json and explain.png to `folder`."""
    from matplotlib.figure import Figure

    (folder / "report.json").write_text(json(found), encoding="utf-8")
    names, classes = list(found["concepts"]), list(dict.fromkeys(row["class"] for row in found["rows"]))
    figure = Figure(figsize=(max(5, 1.5 + 0.35 * len(classes) * len(names)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        rows = [row for row in found["rows"] if row["concept"] == name]
        at = [x - 0.4 + width * (number + 0.5) for x in range(len(classes))]
        scores, spread = [row["score"] for row in rows], [row["deviation"] for row in rows]
        below = [min(d, score) for score, d in zip(scores, spread, strict=True)]
        above = [min(d, 1 - score) for score, d in zip(scores, spread, strict=True)]
        axes.bar(at, scores, 0.9 * width, yerr=[below, above], capsize=2, label=printable(name))
        for x, row, d in zip(at, rows, above, strict=True):
            if row["p"] < LEVEL:
                axes.annotate("*", (x, row["score"] + d + 0.02), ha="center", va="center")
    random = [next(row["random"] for row in found["rows"] if row["class"] == of) for of in classes]
    axes.hlines(
        random, [x - 0.45 for x in range(len(classes))], [x + 0.45 for x in range(len(classes))], "0.3", "dashed"
    )
    axes.set_xticks(range(len(classes)), [printable(of) for of in classes], parse_math=False)
    axes.set(ylim=(0, 1.12), xlabel="class", ylabel="TCAV score")
    axes.legend(title="concept", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(printable(heading), parse_math=False)
    axes.set_title(f"* differs from random examples (dashed), p < {LEVEL}", fontsize=9)
    figure.savefig(folder / "explain.png")
