"""Random kills in searches: `python -m benchmarks.tune_chaos --searches 50`.

Each search tries four learning rates while SIGKILL hits the searcher, the `ddl run` of a trial, a
launcher or a rank at random times. It is resumed until it has ended. Every trial must then be
complete with the loss of an undisturbed search, no trial that was recorded as complete may have run
again, and no process may be left. A variable in the environment marks the processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from cli.search.records import Record, records
from cli.tune import study
from hvd_train.errors import ExitCode

ROOT = Path(__file__).parents[1]
MARK = "DDL_CHAOS"
VICTIMS = ("searcher", "searcher", "command", "launcher", "rank")
CONFIGURATION = """\
data: {name: digits, batch_size: 16}
model: {name: mlp, hidden: [32]}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
train: {steps: 400, eval_every: 100, precision: fp64}
checkpoint: {every: 40, keep: 2}
"""
RATES = "[0.01, 0.02, 0.05, 0.1]"
GONE = 30.0
"""Seconds that the processes of a search that was killed have to save and end."""
HANG = 240.0
"""Timeout of an attempt in seconds."""


class Attempt:
    """One `ddl tune` in `folder`, and all processes that it starts."""

    def __init__(self, folder: Path, np: int) -> None:
        self.mark = uuid.uuid4().hex
        begins = ["--resume", "search"] if (folder / "search" / study.JOURNAL).exists() else []
        words = begins or [
            *("m.yaml", "--set", f"optimizer.lr={RATES}", "--sampler", "grid", "--np", str(np)),
            *("--parallel", str(3 - np), "--retries", "100", "--output", "search"),
        ]
        if not begins:
            shutil.rmtree(folder / "search", ignore_errors=True)
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)}
        with (folder / "output.txt").open("ab") as output:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "cli", "tune", *words],
                cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> Iterator[psutil.Process]:
        """Yield all running processes with the mark in their environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def victim(self, name: str, source: random.Random) -> psutil.Process | None:
        """Return a process of the kind `name`, or None if there is none now."""
        if name == "searcher":
            return psutil.Process(self.command.pid)
        found = [process for process in self.processes() if _kind(process) == name]
        return source.choice(found) if found else None

    def kill(self, name: str, after: float, source: random.Random) -> bool:
        """Kill a process of the kind `name` after so many seconds, or as soon as there is one."""
        time.sleep(after)
        while self.command.poll() is None:
            victim = self.victim(name, source)
            if victim is not None:
                with contextlib.suppress(psutil.Error):
                    victim.send_signal(signal.SIGKILL)
                    return True
            time.sleep(0.02)
        return False


def _kind(process: psutil.Process) -> str:
    """Return what a process of a search is."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if "hvd_train" in words:
            return "launcher" if "mpirun" in Path(words[0]).name or "prterun" in Path(words[0]).name else "rank"
        if "cli" in words and "run" in words:
            return "command"
    return "other"


def search(folder: Path, np: int, source: random.Random | None) -> tuple[list[str], list[str], list[Record]]:
    """Search with kills, if there is a `source` of them. Return the kills, the faults, and the trials."""
    (folder / "m.yaml").write_text(CONFIGURATION)
    planned = [] if source is None else [source.choice(VICTIMS) for _ in range(source.randint(1, 4))]
    kills, faults, found, ended = [], [], list[Record](), dict[int, int]()
    for _ in range(len(planned) + 1):
        attempt = Attempt(folder, np)
        while source is not None and planned and attempt.kill(planned[0], source.uniform(0, 3), source):
            kills.append(planned.pop(0))
        try:
            code = attempt.command.wait(HANG)
        except subprocess.TimeoutExpired:
            return kills, [*faults, "hangs"], []
        if (folder / "search" / study.JOURNAL).exists():
            found = records(study.load(folder / "search"))
            starts = {r.number: started(folder, r) for r in found if r.state == "complete"}
            faults += [f"lost trial {number}" for number in ended if number not in starts]
            faults += [f"trial {n} ran twice" for n in starts if ended.get(n, starts[n]) != starts[n]]
            ended = starts
        if code == ExitCode.OK:
            break
    left = psutil.wait_procs(list(attempt.processes()), timeout=GONE)[1]
    return kills, [*faults, *([f"left {len(left)} processes"] if left else [])], found


def started(folder: Path, record: Record) -> int:
    """Return when the last run of a trial started."""
    return (folder / "search" / f"{record.folder}.pid").stat().st_mtime_ns


def losses(found: list[Record]) -> dict[float, tuple[str, float | None]]:
    """Return state and loss of the trials by learning rate."""
    return {r.values["optimizer.lr"]: (r.state, r.objectives[0] if r.objectives else None) for r in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("tune-chaos.json"))
    told = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tune-chaos-") as root:
        expected = {}
        for number in range(told.searches):
            np = 2 - number % 2
            if np not in expected:
                (folder := Path(root, f"calm-{np}")).mkdir()
                expected[np] = losses(search(folder, np, None)[2])
            (folder := Path(root, f"{number}")).mkdir()
            began = time.monotonic()
            kills, faults, found = search(folder, np, random.Random(f"{told.seed}/{number}"))
            if losses(found) != expected[np]:
                faults.append(f"ended with {losses(found)}, expected {expected[np]}")
            if len(found) != len(expected[np]):
                faults.append(f"{len(found)} trials, expected {len(expected[np])}")
            results.append({"np": np, "kills": kills, "faults": faults, "seconds": time.monotonic() - began})
            print(f"{number}: np={np} {', '.join(kills) or 'no kill'}: {'; '.join(faults) or 'good'}", flush=True)
            if faults:
                print((folder / "output.txt").read_text()[-3000:], flush=True)
            shutil.rmtree(folder)
    good = sum(not result["faults"] for result in results)
    counted = Counter(kill for result in results for kill in result["kills"])
    told.output.write_text(json.dumps({"good": good, "kills": counted, "searches": results}, indent=1) + "\n")
    print(f"{good} of {len(results)} searches good; kills: {dict(counted)}")
    sys.exit(good != len(results))


if __name__ == "__main__":
    main()
