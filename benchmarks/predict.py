"""Rows per second and memory of `ddl predict` on a CSV file, beside the bare model on batches in memory.

Run `python -m benchmarks.predict --rows 10000000`; benchmarks/README.md describes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hvd_train.rank import internal
from hvd_train.trained.predicting.request import Request
from tests.bodies.trained import train

NUMBERS, CITIES = 20, ("Bonn", "Köln", "Ulm", "Trier", "Jena")
BATCH = 4096
"""Rows in a batch of the bare model."""
PIECE = 100_000
TRAINED = 20_000


def main() -> None:
    """Print the figures of each round, and their medians, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["bare", "stream"])
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(_measure(given.measure, *given.words)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_compare(Path(folder), given.rows, given.hidden, given.rounds), indent=1))


def _compare(folder: Path, rows: int, hidden: list[int], rounds: int) -> dict[str, Any]:
    _write(folder / "train.csv", TRAINED, 0)
    _write(folder / "new.csv", rows, 1)
    data = {
        "name": "csv",
        "path": str(folder / "train.csv"),
        "target": "y",
        "standardise": True,
        "categorical": "onehot",
    }
    sections = {"data": {**data, "batch_size": 256}, "model": {"name": "mlp", "hidden": hidden}, "train": {"steps": 20}}
    run = train(folder, sections)
    found = []
    for _ in range(rounds):
        bare = _in_process("bare", str(run), str(rows))
        stream = _in_process("stream", str(run), str(folder / "new.csv"), str(folder / "stream.csv"))
        command = _command(run, folder / "new.csv", folder / "out.csv")
        found.append({"bare": bare, "stream": stream, **command, "ratio": stream / bare})
        print(json.dumps(found[-1]), file=sys.stderr)
    megabytes = (folder / "new.csv").stat().st_size / 1e6
    return {"rows": rows, "megabytes": megabytes, "hidden": hidden} | {
        key: median(f[key] for f in found) for key in found[0]
    }


def _write(path: Path, rows: int, seed: int) -> None:
    """Write a table of numbers, a category and a class."""
    draw = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(NUMBERS)]
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(["id", *names, "city", "y"]) + "\n")
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            numbers = draw.normal(size=(count, NUMBERS)).round(4)
            cities = draw.choice(CITIES, count)
            for i, (values, city) in enumerate(zip(numbers.tolist(), cities, strict=True)):
                file.write(f"{start + i},{','.join(map(str, values))},{city},{int(values[0] > 0)}\n")


def _in_process(kind: str, *words: str) -> float:
    """Return rows per second, without the start of the process."""
    argv = [sys.executable, "-m", "benchmarks.predict", "--measure", kind, *words]
    return float(json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout))


def _measure(kind: str, run: str, *words: str) -> float:
    import torch

    from hvd_train.saved.model import load_model
    from hvd_train.saved.run import find_run
    from hvd_train.trained.predicting.predictor import Predictor
    from hvd_train.trained.predicting.stream import predict

    loaded = load_model(find_run(Path(run)))
    if kind == "stream":
        path, output = words
        Path(output).unlink(missing_ok=True)
        predictor = Predictor(loaded)
        begin = time.perf_counter()
        return predict(predictor, _request(run, path, output)) / (time.perf_counter() - begin)
    rows, x = int(words[0]), torch.randn(BATCH, *loaded.spec.input_shape)
    with torch.inference_mode():
        loaded.module(x)
        begin = time.perf_counter()
        for _ in range(-(-rows // BATCH)):
            loaded.module(x)
    return rows / (time.perf_counter() - begin)


def _request(run: str, path: str, output: str) -> Request:
    return Request(run, [path], output, "csv", [], [], 1, 0)


def _command(run: Path, path: Path, output: Path) -> dict[str, float]:
    """Return seconds and peak memory of the whole command."""
    output.unlink(missing_ok=True)
    argv = internal.argv("hvd_train.trained.predicting", _request(str(run), str(path), str(output)).to_text())
    begin = time.perf_counter()
    process = subprocess.Popen(argv)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit("ddl predict failed")
    return {"command_seconds": time.perf_counter() - begin, "command_megabytes": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
