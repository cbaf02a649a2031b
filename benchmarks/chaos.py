"""Random kills of ranks and of the command: `python -m benchmarks.chaos --runs 100`.

Each run trains with np=3 while a rank, the launcher or `ddl run` gets KILL, TERM, SEGV or STOP at
random times. The run is resumed until it is complete. Its parameters must then equal those of an
undisturbed run bit for bit, and no attempt may leave a process or shared memory. At the end its
temporary folder must be empty: a resumed run removes what a killed command left. A variable in the
environment marks its processes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from hvd_train.rank.submitted import has_checkpoint

NP = 3
ROOT = Path(__file__).parents[1]
MARK, TEMPORARY = "DDL_CHAOS", "tmp"
COMMON = """\
data: {name: digits, batch_size: 16}
train: {steps: 600, eval_every: 200, log_every: 100}
checkpoint: {every: 20, keep: 2}
"""
CONFIGURATIONS = {
    "allreduce, sharded": COMMON
    + """\
model: {name: mlp, hidden: [64]}
optimizer: {name: AdamW, lr: 0.002}
sync: {strategy: allreduce, shard_optimizer: true}
""",
    "local_sgd, top-k": COMMON
    + """\
model: {name: mlp, hidden: [64]}
optimizer: {name: SGD, lr: 0.05}
sync: {strategy: local_sgd, period: 7, compression: {name: topk, ratio: 0.1}}
""",
    "dropout, momentum": COMMON
    + """\
model: {name: mlp, hidden: [64], dropout: 0.3}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
schedule: {name: cosine, warmup_steps: 20}
""",
}
SIGNALS = ("KILL", "TERM", "SEGV", "STOP")
VICTIMS = ("rank 0", "rank 1", "rank 2", "launcher", "command")
STALL = 10
"""Seconds without progress after which `ddl run` ends a job."""
HANG = 180.0
"""Timeout of an attempt in seconds."""
GONE = 15.0
"""Seconds that the processes of an ended attempt have to exit."""
POLL = 0.05


@dataclass(frozen=True)
class Kill:
    """Send `signal` to `victim` after the fraction `at` of the time of an undisturbed run.

    After STOP the victim continues after `pause` seconds, or never without `pause`.
    """

    victim: str
    signal: str
    at: float
    pause: float | None = None


@dataclass
class Outcome:
    """One run: its kills, the exit codes of its attempts, and its faults."""

    configuration: str
    restarts: int
    kills: list[Kill]
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def plan(source: random.Random, most: int) -> list[Kill]:
    """Return one to `most` kills. Each occurs in an attempt of its own."""
    kills = []
    for _ in range(source.randint(1, most)):
        victim, name = source.choice(VICTIMS), source.choice(SIGNALS)
        stays = name == "STOP" and victim.startswith("rank") and source.random() < 0.5
        pause = source.uniform(0.5, 3) if name == "STOP" and not stays else None
        kills.append(Kill(victim, name, source.random(), pause))
    return kills


class Attempt:
    """One `ddl run` in `folder`, and all processes that it starts."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.mark, temporary = uuid.uuid4().hex, folder / TEMPORARY
        temporary.mkdir(exist_ok=True)
        self.shared: set[Path] = set()
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        with (folder / "output.txt").open("ab") as output:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "cli", "run", "--np", str(NP), "--stall-timeout", str(STALL), *arguments],
                cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.began = time.monotonic()

    def processes(self) -> Iterator[psutil.Process]:
        """Yield all running processes with the mark in their environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def victim(self, name: str) -> psutil.Process | None:
        """Return the process called `name`, or None if it does not exist yet."""
        if name == "command":
            return psutil.Process(self.command.pid)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "hvd_train" not in process.cmdline():  # a program that `ddl run` asks for its version
                    continue
                rank = process.environ().get("OMPI_COMM_WORLD_RANK")
                launcher = rank is None and process.ppid() == self.command.pid
                if name == f"rank {rank}" or (name == "launcher" and launcher):
                    return process
        return None

    def strike(self, kill: Kill, at: float) -> None:
        """Send the signal after `at` seconds, when the victim exists, unless the job has ended."""
        while self._running(at) or (self.command.poll() is None and self.victim(kill.victim) is None):
            time.sleep(POLL)
        self._record_shared_memory()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = self.victim(kill.victim) if self.command.poll() is None else None
            if process is not None:
                process.send_signal(getattr(signal, f"SIG{kill.signal}"))
                if kill.pause is not None:
                    time.sleep(kill.pause)
                    process.send_signal(signal.SIGCONT)

    def end(self) -> tuple[int | None, list[str]]:
        """Return the exit code, None after a hang, and the faults of the attempt."""
        while self._running(HANG):
            time.sleep(POLL)
            self._record_shared_memory()
        code, faults = self.command.poll(), []
        if code is None:
            faults.append(f"did not end within {HANG:g} s")
        deadline = time.monotonic() + GONE
        while (left := list(self.processes())) and time.monotonic() < deadline and code is not None:
            time.sleep(POLL)
        for process in left:
            with contextlib.suppress(psutil.Error):
                faults.append(f"process left: {' '.join(process.cmdline()[:6])}")
                process.kill()
        self.command.wait()
        faults += [f"shared memory left: {path}" for path in sorted(self.shared) if path.exists()]
        return code, faults

    def _running(self, seconds: float) -> bool:
        return self.command.poll() is None and time.monotonic() - self.began < seconds

    def _record_shared_memory(self) -> None:
        """Record the shared memory of the processes, which cannot be attributed after their end."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                self.shared |= {
                    Path(line.split()[-1]) for line in maps if "/dev/shm/" in line and "(deleted)" not in line
                }


def run(folder: Path, outcome: Outcome, typical: float, expected: str) -> None:
    """Disturb one run as planned, resume it until it is complete, and record its faults."""
    out, began = folder / "out", time.monotonic()
    for kill in [*outcome.kills, None]:
        restarts = ["--max-restarts", str(outcome.restarts)]
        if has_checkpoint(out):
            attempt = Attempt(folder, [*restarts, "--resume", "out", "model.yaml"])
        else:
            shutil.rmtree(out, ignore_errors=True)
            attempt = Attempt(folder, [*restarts, "--output", "out", "model.yaml"])
        if kill is not None:
            attempt.strike(kill, kill.at * typical)
        code, faults = attempt.end()
        outcome.codes.append(-1 if code is None else code)
        outcome.faults += [f"{kill}: {fault}" for fault in faults]
        if kill is None:
            outcome.faults += left_behind(folder)
        if code == 2 or (kill is None and code != 0):
            outcome.faults.append(f"{kill}: exit code {code}")
    found = digest(out) if has_checkpoint(out) else "no checkpoint"
    if found != expected:
        outcome.faults.append("parameters differ from those of an undisturbed run")
    outcome.seconds = time.monotonic() - began


def left_behind(folder: Path) -> list[str]:
    """Return a fault for each file in the temporary folder of a run."""
    return [f"left in the temporary folder: {path.name}" for path in (folder / TEMPORARY).iterdir()]


def undisturbed(folder: Path) -> tuple[float, str]:
    """Run without kills, and return the seconds and the digest of the result."""
    attempt = Attempt(folder, ["--output", "out", "model.yaml"])
    code, faults = attempt.end()
    faults += left_behind(folder)
    if code or faults:
        raise SystemExit(
            f"an undisturbed run failed: exit code {code}, {faults}\n{(folder / 'output.txt').read_text()}"
        )
    return time.monotonic() - attempt.began, digest(folder / "out")


def digest(out: Path) -> str:
    """Return a digest of the newest checkpoint: its step and its model."""
    newest = max((out / "checkpoints").glob("step-*"))
    return f"{newest.name} {hashlib.sha256((newest / 'model.safetensors').read_bytes()).hexdigest()}"


def measure(root: Path, runs: int, seed: int, kills: int, console: Console) -> list[Outcome]:
    references: dict[str, tuple[float, str]] = {}
    outcomes = []
    for number in range(runs):
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        if name not in references:
            references[name] = undisturbed(create(root / f"undisturbed-{len(references)}", name))
        source = random.Random(f"{seed}/{number}")
        outcome = Outcome(name, source.choice((0, 0, 2)), plan(source, kills))
        folder = create(root / f"run-{number}", name)
        run(folder, outcome, *references[name])
        outcomes.append(outcome)
        struck = ", ".join(f"{kill.signal} {kill.victim}" for kill in outcome.kills)
        verdict = "; ".join(outcome.faults) or "equal"
        console.print(f"{number + 1}/{runs} {name}: {struck} -> {outcome.codes} {outcome.seconds:.0f} s: {verdict}")
        if not outcome.faults:
            shutil.rmtree(folder)
    return outcomes


def create(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "model.yaml").write_text(CONFIGURATIONS[name])
    return folder


def table(outcomes: Sequence[Outcome]) -> Table:
    shown = Table("configuration", "runs", "equal, nothing left", "kills", "attempts", "seconds")
    for name in dict.fromkeys(outcome.configuration for outcome in outcomes):
        some = [outcome for outcome in outcomes if outcome.configuration == name]
        counts = Counter(kill.signal for outcome in some for kill in outcome.kills)
        kills = ", ".join(f"{n} {signal}" for signal, n in sorted(counts.items()))
        good, attempts = sum(not o.faults for o in some), sum(len(o.codes) for o in some)
        shown.add_row(name, str(len(some)), str(good), kills, str(attempts), f"{sum(o.seconds for o in some):.0f}")
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=3, help="most kills of a run")
    parser.add_argument("--output", type=Path, help="JSON with every run")
    return parser.parse_args()


def main() -> None:
    options, console = parse(), Console(soft_wrap=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root = Path(tempfile.mkdtemp(prefix="ddl-chaos-"))
    outcomes = measure(root, options.runs, options.seed, options.kills, console)
    good = sum(not outcome.faults for outcome in outcomes)
    console.print(table(outcomes))
    console.print(f"{good} of {len(outcomes)} runs equal an undisturbed one and leave nothing behind")
    if options.output:
        record = {"seed": options.seed, "np": NP, "good": good, "runs": [asdict(outcome) for outcome in outcomes]}
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if good < len(outcomes):
        sys.exit(f"failed runs are in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
