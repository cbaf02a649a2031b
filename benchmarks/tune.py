"""What a search costs: `python -m benchmarks.tune [asha|overhead|parallel|journal|warm]`.

- asha: steps of 64 configurations of digits with ASHA over those of random search, for 5 seeds.
- overhead: wall time of `ddl tune` over its own `ddl run` commands one after another, interleaved.
- parallel: share of a core that the searcher uses beside 8 trials at a time.
- journal: memory of a search that goes on with 10,000 trials in its journal.
- warm: wall time of trials with `--warm` over their bare steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import psutil

from cli.search.records import Record, records
from cli.tune import study
from cli.tune.request import Request
from cli.tune.session import make_plan
from hvd_train.rank import internal

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits_mlp.yaml"
SPACE = ("optimizer.lr=log(1e-4,1)", "model.hidden=[[16],[32],[64],[128]]", "data.batch_size=[16,32,64,128]")


def tune(folder: Path, *words: str) -> tuple[float, float]:
    """Search to the end, and return seconds and CPU seconds of the searcher alone."""
    began = time.monotonic()
    command = [sys.executable, "-m", "cli", "tune", *words, "--output", str(folder), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    cpu = 0.0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            times = watched.cpu_times()
            cpu = max(cpu, times.user + times.system)
        except psutil.Error:
            pass
        time.sleep(0.05)
    assert process.returncode == 0, folder
    return time.monotonic() - began, cpu


def trials(folder: Path) -> list[Record]:
    return records(study.load(folder))


def summary(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return found


def steps(folder: Path, found: Sequence[Record]) -> int:
    """Return the steps of all runs; trials that continue others share a folder with them."""
    return int(sum(summary(folder / name)["steps"] for name in {record.folder for record in found}))


def asha(root: Path) -> None:
    """Steps until ASHA has the accuracy of the best of 64 random trials, which it may exceed 64 trials for."""
    told = [str(DIGITS), *(word for text in SPACE for word in ("--set", text)), "--sampler", "random"]
    common = [*told, "--warm", "--parallel", "2", "--objective", "accuracy"]
    print("| seed | best of random | steps of random | best of ASHA | its trials | its steps | ratio |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for seed in range(5):
        plain, halved = root / f"random-{seed}", root / f"asha-{seed}"
        tune(plain, *common, "--trials", "64", f"search.seed={seed}")
        found = trials(plain)
        best, spent = max(r.objectives[0] for r in found if r.objectives), steps(plain, found)
        told = [
            "--trials",
            "256",
            "--pruner",
            "asha",
            "search.pruner.first=3",
            f"search.seed={seed}",
            "--target",
            str(best),
        ]
        tune(halved, *common, *told)
        found = trials(halved)
        reached, cost = max(r.objectives[0] for r in found if r.objectives), steps(halved, found)
        ratios.append(cost / spent)
        tried = sum(r.continues is None for r in found)
        print(f"| {seed} | {best:.4f} | {spent} | {reached:.4f} | {tried} | {cost} | {ratios[-1]:.2f} |", flush=True)
    print(f"median {median(ratios):.2f}, mean {fmean(ratios):.2f}")


def overhead(root: Path) -> None:
    """Each pair: a search of 6 trials, then the same six runs by hand."""
    differences = []
    for pair in range(3):
        folder = root / f"search-{pair}"
        wall, cpu = tune(folder, str(DIGITS), "--set", "seed=[1,2,3,4,5,6]", "--sampler", "grid", "--parallel", "1")
        began = time.monotonic()
        for seed in range(1, 7):
            words = internal.argv(
                "cli", "run", str(DIGITS), f"seed={seed}", "--quiet", "--output", f"{root}/{pair}-{seed}"
            )
            subprocess.run(words, check=True, cwd=ROOT)
        alone = time.monotonic() - began
        differences.append((wall - alone) / 6)
        print(
            f"search {wall:.2f} s ({cpu:.2f} s of CPU), runs alone {alone:.2f} s: {differences[-1]:.3f} s a trial",
            flush=True,
        )
    start = _start_of_the_search(root)
    print(f"median {median(differences):.3f} s a trial, of which the start of the search is {start / 6:.3f} s")


def _start_of_the_search(root: Path) -> float:
    """Return the seconds until a search would start its first run."""
    began = time.monotonic()
    words = internal.argv("cli", "tune", str(DIGITS), "--set", "seed=[1,2]", "--sampler", "grid", "--dry-run")
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def parallel(root: Path) -> None:
    told = [
        str(DIGITS),
        "train.epochs=400",
        "train.eval_every=920",
        "--set",
        "seed=[1,2,3,4,5,6,7,8]",
        "--sampler",
        "grid",
    ]
    wall, cpu = tune(root / "parallel", *told, "--parallel", "8", "--pruner", "median", "search.pruner.startup=100")
    start = _start_of_the_search(root)
    print(
        f"8 trials at a time: searcher {cpu:.2f} s of CPU in {wall:.1f} s; {(cpu - start) / wall:.2%} without its start"
    )


def journal(root: Path) -> None:
    """Write 10,000 trials of 20 evaluations as a search does, and go on with one more."""
    import optuna

    from cli.search.records import FIGURES, FOLDER, SPANS, VALUES

    folder = root / "large"
    told = [str(DIGITS), "train.epochs=1", *(word for text in SPACE for word in ("--set", text))]
    tune(folder, *told, "--trials", "1")
    one = study.load(folder)
    plan = make_plan(Request.parse(one.user_attrs["request"]))
    sampler = optuna.samplers.RandomSampler(seed=0)
    kept = study.journal(folder)
    kept.study.sampler = sampler
    began = time.monotonic()
    synchronise, os.fsync = os.fsync, lambda _: None  # 260,000 of them would take half an hour
    for number in range(1, 10_000):
        asked = kept.study.ask()
        values = plan.space.suggest(asked)
        kept.note(number, VALUES, values)
        kept.note(number, FOLDER, f"trials/{number:04}")
        kept.note(number, SPANS, [[0.0, 1.0, ["localhost:0"]]])
        kept.note(number, FIGURES, {"loss": 1.0, "accuracy": 0.5, "seconds": 1.0, "step": 20, "bytes_sent": 0})
        for evaluation in range(1, 21):
            kept.report(number, evaluation, 1.0 / evaluation)
        kept.study.tell(number, 1.0)
    os.fsync = synchronise
    print(
        f"10,000 trials written in {time.monotonic() - began:.0f} s; {(folder / study.JOURNAL).stat().st_size / 1e6:.0f} MB"
    )
    began = time.monotonic()
    words = [sys.executable, "-m", "cli", "tune", "--resume", str(folder), "--trials", "10002", "--quiet"]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    watched, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            most = max(most, watched.memory_info().rss)
        time.sleep(0.05)
    print(f"two more trials in {time.monotonic() - began:.1f} s, {most / 1e6:.0f} MB at most")


def warm(root: Path) -> None:
    for np in (1, 2):
        ratios = {}
        for name in ("warm", "cold"):
            folder = root / f"{name}-{np}"
            epochs = 70 if np == 1 else 30
            told = [str(DIGITS), f"train.epochs={epochs}", "--set", "seed=[1,2,3,4,5,6]", "--sampler", "grid"]
            tune(folder, *told, "--np", str(np), "--parallel", "1", *(["--warm"] if name == "warm" else []))
            found = trials(folder)
            bare = [r.figures["step"] / summary(folder / r.folder)["steps_per_second"] for r in found]
            walls = [r.spans[0][1] - r.spans[0][0] for r in found]
            ratios[name] = [wall / one for wall, one in zip(walls, bare, strict=True)]
            phases = [sum(summary(folder / r.folder)["seconds"].values()) for r in found]  # type: ignore[attr-defined]
            print(
                f"np={np} {name}: wall {median(walls):.2f} s, bare steps {median(bare):.2f} s (phases {median(phases):.2f} s): "
                f"{median(ratios[name][1:]):.2f} (first {ratios[name][0]:.2f})",
                flush=True,
            )


PARTS = {"asha": asha, "overhead": overhead, "parallel": parallel, "journal": journal, "warm": warm}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory(prefix="ddl-tune-") as root:
            print(f"## {name}", flush=True)
            PARTS[name](Path(root))


if __name__ == "__main__":
    main()
