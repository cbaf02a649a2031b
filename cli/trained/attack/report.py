"""The results of `ddl attack` as tables, as JSON and as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from hvd_train.text import strict_json
from hvd_train.text.display import console
from hvd_train.text.names import printable

SEVERITIES = 5


@dataclass(frozen=True)
class Report:
    """What the task `attack` returned for the run `name`."""

    name: str
    result: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write `attack.json`, and `robustness.png` and `corruptions.png` of what was measured."""
        from cli.trained.attack import plot

        (folder / "attack.json").write_text(self.json(), encoding="utf-8")
        if self.result["attacks"]:
            plot.robustness(self.result["attacks"], self.title).savefig(folder / "robustness.png")
        if self.result["corruptions"]:
            plot.corruptions(self.result["corruptions"], self.title).savefig(folder / "corruptions.png")

    @property
    def title(self) -> str:
        return (
            f"{printable(self.name)}, {self.result['samples']:,} samples of the split {printable(self.result['split'])}"
        )

    def json(self) -> str:
        return strict_json.dumps(dict(self.result), indent=1) + "\n"

    def text(self, folder: Path) -> str:
        """Return the tables, and a sentence for each sign that gradients are masked."""
        file = io.StringIO()
        shown = console(file=file)
        for part in self._parts():
            shown.print(part)
        return f"{file.getvalue()}{printable(str(folder))}\n"

    def _parts(self) -> Iterator[str | Table]:
        yield self.title
        attacks, corruptions = self.result["attacks"], self.result["corruptions"]
        if attacks:
            yield _robust(attacks)
            failed = [check["sentence"] for check in attacks["checks"] if not check["passed"]]
            yield from failed
            if attacks["checks"] and not failed:
                names = ", ".join(check["check"] for check in attacks["checks"])
                yield f"No sign of masked gradients at epsilon {attacks['checked_at']:g} ({names})."
        if corruptions:
            yield _corrupted(corruptions)


def _robust(attacks: Mapping[str, Any]) -> Table:
    """Return the accuracies: a row for each epsilon, a column for each attack."""
    table = Table(title=f"Accuracy, %, by epsilon ({attacks['norm']}, {attacks['unit']})", title_justify="left")
    for name in ("epsilon", *attacks["accuracy"]):
        table.add_column(name, justify="right")
    for place, epsilon in enumerate(attacks["epsilon"]):
        values = [f"{100 * curve[place]:.1f}" for curve in attacks["accuracy"].values()]
        table.add_row(f"{epsilon:g}" if epsilon else "0 (clean)", *values)
    return table


def _corrupted(found: Mapping[str, Any]) -> Table:
    """Return the metric: a row for each corruption, a column for each severity."""
    factor, unit = (100, ", %,") if found["metric"] == "accuracy" else (1, "")
    title = f"{found['metric'].capitalize()}{unit} of corrupted {found['kind']} by severity"
    table = Table(title=title, title_justify="left")
    for name in ("corruption", *(str(severity) for severity in range(1, SEVERITIES + 1)), "mean"):
        table.add_column(name, justify="left" if name == "corruption" else "right")
    for name, values in found["by_severity"].items():
        mean = sum(values) / len(values)
        table.add_row(name.replace("_", " "), *(f"{factor * value:.4g}" for value in (*values, mean)))
    table.add_section()
    table.add_row("clean", *[""] * SEVERITIES, f"{factor * found['clean']:.4g}")
    table.add_row("mean of all", *[""] * SEVERITIES, f"{factor * found['mean']:.4g}")
    return table
