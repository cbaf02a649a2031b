"""Digits under PGD, after plain and after adversarial training, as a table and a picture.

Run `python -m benchmarks.adversarial [PICTURE.png]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cli.trained.attack.plot import COLOURS, MARKERS

ROOT = Path(__file__).parents[1]
YAML = ROOT / "examples" / "digits_mlp.yaml"
EPSILONS = "0,0.03,0.06,0.09,0.12,0.15,0.2,0.25,0.3"
TRAINED = {
    "plain training": (),
    "train.adversarial: pgd, epsilon 0.1": (
        "train.adversarial.name=pgd",
        "train.adversarial.epsilon=0.1",
        "train.adversarial.steps=7",
    ),
}
"""Overrides of the configuration by label."""


def ddl(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", "cli", *words], cwd=ROOT, check=True, stdout=-1, text=True).stdout


def measured(folder: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Train, attack all held-out samples by PGD with 40 steps and 5 restarts, and return the report."""
    ddl("run", str(YAML), *overrides, "--output", str(folder), "--quiet")
    options = ["--method", "pgd", "--epsilon", EPSILONS, "--steps", "40", "--restarts", "5", "--json"]
    report: dict[str, Any] = json.loads(ddl("attack", str(folder), *options))["attacks"]
    return report


def picture(reports: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 4), dpi=90, layout="constrained")
    axes = figure.subplots()
    for number, (label, report) in enumerate(reports.items()):
        shares = [100 * share for share in report["accuracy"]["pgd"]]
        axes.plot(report["epsilon"], shares, color=COLOURS[number], marker=MARKERS[number], markersize=4.5, label=label)
    axes.set_xlabel("epsilon (linf), pixel values of 0 to 1")
    axes.set_ylabel("accuracy of digits under pgd, %")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        reports = {label: measured(Path(folder) / str(i), o) for i, (label, o) in enumerate(TRAINED.items())}
    for label, report in reports.items():
        shares = zip(report["epsilon"], report["accuracy"]["pgd"], strict=True)
        print(label, *(f"{epsilon:g}: {100 * share:.1f} %" for epsilon, share in shares), sep="  ")
        print(*(check["sentence"] for check in report["checks"] if not check["passed"]), sep="\n")
    if len(sys.argv) > 1:
        picture(reports).savefig(sys.argv[1])


if __name__ == "__main__":
    main()
