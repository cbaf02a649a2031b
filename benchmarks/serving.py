"""Requests per second and their times: `ddl serve` beside bare FastAPI routes with the same model.

Run on an idle machine: `python -m benchmarks.serving --seconds 60 --pairs 3`. A round gives each
server one block of the load; the order changes from round to round. Servers and clients are
processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bodies import trained

ROOT = Path(__file__).parents[1]
MODELS = {
    "small": {"name": "mlp", "hidden": [128, 64]},
    "large": {"name": "mlp", "hidden": [2048, 2048, 2048]},
}


class Served:
    """A server in a process of its own, and what was measured of it."""

    def __init__(self, name: str, words: list[str], port: int | None = None) -> None:
        self.name, self.blocks = name, list[dict[str, Any]]()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        self.port = port or self._printed_port()
        _wait(self.port)

    def measure(self, clients: int, seconds: float, body: str) -> None:
        watched = psutil.Process(self.process.pid)
        before = sum(watched.cpu_times()[:2])
        words = [sys.executable, "-m", "benchmarks.serving_load", str(self.port), str(clients), str(seconds), body]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        block = json.loads(done.stdout)
        block["server_cpu_us"] = 1e6 * (sum(watched.cpu_times()[:2]) - before) / block["requests"]
        self.blocks.append(block)

    def median(self, figure: str) -> float:
        return statistics.median(block[figure] for block in self.blocks)

    def _printed_port(self) -> int:
        assert self.process.stdout is not None
        found = re.search(r":(\d+);", self.process.stdout.readline())
        assert found, "the server did not start"
        return int(found[1])


def _wait(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def servers(run: Path, options: list[str]) -> list[Served]:
    """Start ddl serve and two bare routes; the model has one thread in all of them."""
    command = [sys.executable, "-m", "cli", "serve", str(run), "--port", "0", "--threads", "1", *options]
    found = [Served("ddl serve", command)]
    for kind in ("def", "async"):
        port = _free_port()
        words = [sys.executable, "-m", "benchmarks.serving_bare", str(run), str(port), kind]
        found.append(Served(f"bare, {kind}", words, port))
    return found


def report(served: list[Served]) -> str:
    """Return a table; the ratios are medians over rounds."""
    lines = ["| server | requests/s | p50 ms | p99 ms | errors | CPU us a request | throughput of ddl serve over it |"]
    lines.append("|---|---|---|---|---|---|---|")
    ours = served[0].blocks
    for one in served:
        pairs = zip(ours, one.blocks, strict=True)
        ratio = statistics.median(a["per_second"] / b["per_second"] for a, b in pairs)
        figures = [one.median(name) for name in ("per_second", "p50_ms", "p99_ms")]
        errors = sum(block["errors"] for block in one.blocks)
        cells = [f"{figures[0]:.0f}", f"{figures[1]:.1f}", f"{figures[2]:.1f}", str(errors)]
        lines.append(f"| {one.name} | {' | '.join(cells)} | {one.median('server_cpu_us'):.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--options", default="", help="further options of ddl serve")
    chosen = parser.parse_args()
    body = json.dumps({"instances": [[[[round(random.random(), 4) for _ in range(8)] for _ in range(8)]]]})
    with tempfile.TemporaryDirectory(prefix="ddl-serving-") as scratch:
        run = trained.digits(Path(scratch), model=MODELS[chosen.model])
        served = servers(run, chosen.options.split())
        try:
            for number in range(chosen.pairs):
                for one in served[:: 1 if number % 2 else -1]:
                    one.measure(chosen.clients, chosen.seconds, body)
        finally:
            for one in served:
                one.process.terminate()
                one.process.wait()
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {chosen.model} mlp, {chosen.clients} clients")
    print(report(served))


if __name__ == "__main__":
    main()
