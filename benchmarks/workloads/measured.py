"""Run a case, and measure the whole command: wall time, CPU time, and the memory of its largest process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workloads.cases import ROOT, Case

Row = dict[str, Any]
BETWEEN = 0.3
"""Seconds between two looks at the memory."""


def measure(case: Case, folder: Path) -> Row:
    """Run `case` with the run folder `folder`. A command that fails gives a row with its last words in `error`."""
    shutil.rmtree(folder, ignore_errors=True)
    row = {"key": case.key, "part": case.part, "workload": case.workload, "variant": case.variant, "seed": case.seed}
    figures, printed, errors, code = _watched(command(case, folder), environment(case))
    row |= {"load": os.getloadavg()[0], **figures}
    if code:
        return {**row, "code": code, "error": errors.strip().splitlines()[-1:] or ["no message"]}
    if not case.ranks:
        return {**row, **_printed(printed, row)}
    return {**row, **result(folder), **(_translations(folder) if case.evaluated else {})}


def command(case: Case, folder: Path) -> list[str]:
    """Return the command line of `case`."""
    if not case.ranks:
        threads = ["--threads", str(case.threads)]
        return [sys.executable, "-m", *case.arguments, *threads]
    ddl = [sys.executable, "-m", "cli", "run", "--np", str(case.ranks), "--quiet", "--output", str(folder)]
    return [*ddl, *case.arguments]


def environment(case: Case) -> dict[str, str]:
    """Return the environment, in which ddl chooses the threads unless the case has a number.

    Python keeps compiled modules, as it does for users.
    """
    changed = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in changed}
    threads = {"OMP_NUM_THREADS": str(case.threads)} if case.threads else {}
    return {**kept, **threads, "PYTHONPATH": str(ROOT)}


def result(folder: Path) -> Row:
    """Return the figures of the run folder, with the losses by step."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curves = {
        kind: [(line["step"], line["loss"]) for line in lines if line["kind"] == kind and "loss" in line]
        for kind in ("train", "eval")
    }
    names = ("steps", "steps_per_second", "bytes_sent")
    return {
        "metrics": summary["eval"],
        **{name: summary[name] for name in names},
        "phases": summary["seconds"],
        "curves": curves,
    }


def _printed(text: str, row: Row) -> Row:
    """Return the metrics and the times of a plain script, without the time in which it writes texts.

    ddl does that in another command, too.
    """
    values = json.loads(text.splitlines()[-1])
    own = ("seconds", "cpu_seconds", "memory_mb", "steps", "writing_seconds", "writing_cpu_seconds")
    return {
        "metrics": {name: value for name, value in values.items() if name not in own},
        "steps": values["steps"],
        **{name: row[name] - values[f"writing_{name}"] for name in ("seconds", "cpu_seconds")},
    }


def _translations(folder: Path) -> Row:
    scores = evaluated(folder)["translations"]["rows"]
    parts = list(dict.fromkeys(row["sources"] for row in scores))
    own = {row["sources"]: row for row in scores if row["answer"] == "model"}
    metrics = {name: own[parts[0]][name] for name in ("bleu", "chrf", "exact")}
    unlike = {"bleu of strings unlike training": own[parts[1]]["bleu"]} if len(parts) > 1 else {}
    return {"metrics": {**metrics, **unlike}, "translations": scores}


def evaluated(folder: Path) -> Row:
    """Return what `ddl evaluate` finds out about the run in `folder`, once for each run."""
    output = folder / "evaluate"
    if not output.exists():
        ddl("evaluate", str(folder), "--np", "1", "--output", str(output))
    return json.loads((output / "evaluate.json").read_text(encoding="utf-8"))


def ddl(*words: str) -> str:
    """Return what `ddl` prints with the arguments `words`; RuntimeError, which has its messages, if it fails."""
    line = [sys.executable, "-m", "cli", *words]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ddl {' '.join(words)}: {done.stderr}")
    return done.stdout


def _watched(line: list[str], env: dict[str, str]) -> tuple[Row, str, str, int]:
    """Return the figures of a command, what it printed on both streams, and its exit code."""
    highest: dict[int, tuple[float, float]] = {}
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=out, stderr=err)
        looked = 0.0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.perf_counter() - looked > BETWEEN:
                for pid, (resident, shared) in _memory(process.pid):
                    before = highest.get(pid, (0.0, 0.0))
                    highest[pid] = (max(before[0], resident), max(before[1], shared))
                looked = time.perf_counter()
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        texts = [_text(file) for file in (out, err)]
    figures = {
        "seconds": seconds,
        "cpu_seconds": ended[2].ru_utime + ended[2].ru_stime,
        "rss_mb": max((resident for resident, _ in highest.values()), default=0.0),
        "pss_mb": max((proportional for _, proportional in highest.values()), default=0.0),
    }
    return figures, *texts, process.returncode


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", errors="replace"))


def _memory(pid: int) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield each process of the tree, with its peak resident and its present proportional set size in MB."""
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(OSError, StopIteration):
                yield (
                    process.pid,
                    (_entry(process.pid, "status", "VmHWM:"), _entry(process.pid, "smaps_rollup", "Pss:")),
                )


def _entry(pid: int, file: str, name: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
