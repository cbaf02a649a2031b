"""The three forms of a result: JSON with every round, a picture, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from cli.bench import figures, plots, tables
from cli.bench.figures import Result, Run
from cli.bench.goals import goals
from hvd_train.text import strict_json

BASELINES = {
    "allreduce": {"floor": "memcpy", "ours": "ddl_mpi_arena"},
    "step": {"floor": "local", "ours": "ddl_mpi"},
    "scaling": {"floor": "local", "ours": "ddl_mpi"},
    "horovod": {"horovod": "horovod"},
}

TABLES = {"allreduce": tables.allreduce, "step": tables.step, "scaling": tables.scaling, "horovod": tables.calls}
PLOTS = {"allreduce": plots.allreduce, "step": plots.step, "scaling": plots.scaling, "horovod": plots.calls}


def result(what: str, pairs: int, measured: Sequence[Run]) -> Result:
    """Return the content of `bench.json`: runs, summaries, goals and scaling."""
    runs = [{**run, "cases": [figures.summarise(case, BASELINES[what]) for case in run["cases"]]} for run in measured]
    judged = [{**asdict(goal), "met": goal.met} for run in runs for goal in goals(what, run)]
    scaling = {"scaling": figures.scaling(runs)} if what == "scaling" else {}
    return {"what": what, "pairs": pairs, "baselines": BASELINES[what], "runs": runs, "targets": judged, **scaling}


def save(result: Result, folder: Path) -> None:
    """Write `bench.json` and `bench.png` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(strict_json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PLOTS[result["what"]](result).savefig(folder / "bench.png")


def show(result: Result, console: Console) -> None:
    """Print the table, the goals, and why each unavailable variant was not measured."""
    console.print(TABLES[result["what"]](result))
    if result["targets"]:
        console.print(tables.goals(result["targets"]))
    for reason in figures.unavailable(result["runs"]):
        console.print(reason)
