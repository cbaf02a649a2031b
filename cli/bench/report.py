"""The three forms of a result: JSON with everything, a picture, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from cli.bench import figures, plots, tables
from cli.bench.figures import Result, Run
from cli.bench.targets import targets
from hvd_train import strict_json

BASELINES = {
    "allreduce": {"floor": "memcpy", "ours": "ddl_mpi_arena"},
    "step": {"floor": "local", "ours": "ddl_mpi"},
    "scaling": {"floor": "local", "ours": "ddl_mpi"},
    "horovod": {"horovod": "horovod"},
}

TABLES = {"allreduce": tables.allreduce, "step": tables.step, "scaling": tables.scaling, "horovod": tables.calls}
PLOTS = {"allreduce": plots.allreduce, "step": plots.step, "scaling": plots.scaling, "horovod": plots.calls}


def result(what: str, pairs: int, measured: Sequence[Run]) -> Result:
    """Everything that was measured and follows from it."""
    runs = [{**run, "cases": [figures.summarise(case, BASELINES[what]) for case in run["cases"]]} for run in measured]
    found = [{**asdict(target), "met": target.met} for run in runs for target in targets(what, run)]
    scaling = {"scaling": figures.scaling(runs)} if what == "scaling" else {}
    return {"what": what, "pairs": pairs, "baselines": BASELINES[what], "runs": runs, "targets": found, **scaling}


def save(found: Result, folder: Path) -> None:
    """`bench.json` and `bench.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(strict_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PLOTS[found["what"]](found).savefig(folder / "bench.png")


def show(found: Result, console: Console) -> None:
    """The table of `what`, the targets, and what was not measured and why."""
    console.print(TABLES[found["what"]](found))
    if found["targets"]:
        console.print(tables.targets(found["targets"]))
    for reason in figures.unavailable(found["runs"]):
        console.print(reason)
