"""The pictures and the tables of answers of docs/workloads.md, from the rows and the run folders."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.strategies import shrink
from benchmarks.workloads import pages
from benchmarks.workloads.cases import ROOT, WORKLOADS
from benchmarks.workloads.measured import Row, ddl, evaluated
from hvd_train.config.fetched import place

PAGE = ROOT / "docs" / "workloads.md"
COLUMNS = 3
USER, TOP = "42", 10


def draw(rows: Mapping[str, Row], output: Path, folder: Path) -> None:
    """Write the pictures of what was run into `folder`, and the tables of answers into `PAGE`."""
    trained = {
        name: row for name in WORKLOADS if (row := rows.get(f"runs: {name}, np=2, seed 0")) and "error" not in row
    }
    if trained:
        save(curves(trained), folder / "workloads-curves.png")
        fill("curves", "![losses of training and held-out samples by step](images/workloads-curves.png)")
    runs = output / "runs"
    if "bert_trec" in trained:
        save(confusion(evaluated(runs / "bert_trec")), folder / "workloads-trec.png")
        fill("questions", "![confusion matrix of the held-out questions](images/workloads-trec.png)")
    if "mnist_cnn" in trained:
        file = output / "mnist.png"
        ddl("data", "show", str(WORKLOADS["mnist_cnn"].yaml), "--workers", "0", "--np", "1", "--output", str(file))
        shrink(file, folder / "workloads-mnist.png")
        fill("augmentation", "![training images after augmentation](images/workloads-mnist.png)")
    if "translate" in trained:
        fill("translations", translations(evaluated(runs / "translate")))
    if "movielens_ranking" in trained:
        fill("recommendations", recommendations(runs / "movielens_ranking"))


def save(figure: Figure, file: Path) -> None:
    """Save the figure with few colours."""
    figure.savefig(file)
    shrink(file, file)


def curves(trained: Mapping[str, Row]) -> Figure:
    """Draw the losses of training and of held-out samples by step, one panel for each workload."""
    lines = -(-len(trained) // COLUMNS)
    figure = Figure(figsize=(10, 2.4 * lines), dpi=110, layout="constrained")
    panels = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for axes, (name, row) in zip(panels, trained.items(), strict=False):
        _curve(axes, name, row)
    for axes in panels[len(trained) :]:
        axes.set_axis_off()
    return figure


def _curve(axes: Axes, name: str, row: Row) -> None:
    axes.plot(*zip(*row["curves"]["train"], strict=True), color="#0072b2", linewidth=0.8, label="training")
    axes.plot(*zip(*row["curves"]["eval"], strict=True), color="#d55e00", marker="o", markersize=3, label="held out")
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)


def confusion(found: Row) -> Figure:
    """Draw how many held-out samples of each class got which class."""
    names, counts = [row["class"] for row in found["rows"]], found["confusion"]
    figure = Figure(figsize=(4.6, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow([[count / max(1, sum(line)) for count in line] for line in counts], cmap="Blues", vmin=0, vmax=1)
    for y, line in enumerate(counts):
        for x, count in enumerate(line):
            dark = count > sum(line) / 2
            axes.text(x, y, str(count), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    return figure


def translations(found: Row) -> str:
    """Return the table of ten translations, at equal distances in the held-out pairs."""
    head = ("source", "model", "reference", "nearest training source's translation", "similarity")
    return pages.table(
        head,
        [
            [*(one[name] for name in ("source", "model", "target", "nearest")), f"{one['similarity']:.2f}"]
            for one in found["translations"]["examples"]
        ],
    )


def recommendations(run: Path) -> str:
    """Return the table of the ten best films for one user, beside ten of the films that the user rated highest."""
    data = place("fetched:movielens-100k")
    titles = {row["item"]: f"{row['title']} ({row['year']})" for row in _table(data / "items.csv")}
    rated = [row for row in _table(data / "ratings.csv") if row["user"] == USER]
    liked = sorted(rated, key=lambda row: -float(row["rating"]))[:TOP]
    users = run / "users.csv"
    users.write_text(f"user\n{USER}\n", encoding="utf-8")
    (answer,) = (
        json.loads(line) for line in ddl("predict", str(run), str(users), "--top", str(TOP), "--json").splitlines()
    )
    best = [titles[str(one["item"])] for one in answer["top"]]
    head = ("rank", f"recommended to user {USER}", "rated highest by the user")
    return pages.table(
        head, [[str(n), film, titles[row["item"]]] for n, (film, row) in enumerate(zip(best, liked, strict=True), 1)]
    )


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(name: str, text: str) -> None:
    """Replace the part `name` of `PAGE`, between two comments."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")
