"""Kill ranks and the command at random, resume until done, compare: `python -m benchmarks.chaos --runs 100`.

Each run trains at np=3 while processes of it get KILL, TERM, SEGV or STOP at random times: a rank, the launcher, or `ddl run`
itself. It is resumed until it is done. Its parameters must then be those of a run that nobody disturbed, to the bit, and nothing
may be left of it: no process, no shared memory, no file in its temporary folder. A mark in their environment tells its processes.
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

from hvd_train.submitted import has_checkpoint

NP = 3
ROOT = Path(__file__).parents[1]
MARK = "DDL_CHAOS"
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
"""Seconds after which `ddl run` ends a job in which a rank stands still."""
HANG = 180.0
"""Seconds within which an attempt must have ended."""
GONE = 15.0
"""Seconds that what is left of an attempt has to go by itself."""
LOOK = 0.05


@dataclass(frozen=True)
class Kill:
    """`signal` to `victim` at `at`, a share of the time that an undisturbed run takes; it goes on `pause` seconds after STOP.

    Without `pause` a rank stays stopped until the command ends the job.
    """

    victim: str
    signal: str
    at: float
    pause: float | None = None


@dataclass
class Outcome:
    """One run: what was done to it, how its attempts ended, and what was wrong with it."""

    configuration: str
    restarts: int
    kills: list[Kill]
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def plan(source: random.Random, most: int) -> list[Kill]:
    """One to `most` kills, an attempt each."""
    kills = []
    for _ in range(source.randint(1, most)):
        victim, name = source.choice(VICTIMS), source.choice(SIGNALS)
        stays = name == "STOP" and victim.startswith("rank") and source.random() < 0.5
        pause = source.uniform(0.5, 3) if name == "STOP" and not stays else None
        kills.append(Kill(victim, name, source.random(), pause))
    return kills


class Attempt:
    """One `ddl run` in `folder`, and all that it starts."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.mark, self._tmp = uuid.uuid4().hex, folder / "tmp"
        self._tmp.mkdir(exist_ok=True)
        self.shared: set[Path] = set()
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self._tmp), "PYTHONPATH": str(ROOT)}
        with (folder / "output.txt").open("ab") as output:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "cli", "run", "--np", str(NP), "--stall-timeout", str(STALL), *arguments],
                cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.began = time.monotonic()

    def processes(self) -> Iterator[psutil.Process]:
        """Everything alive that has the mark in its environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def victim(self, name: str) -> psutil.Process | None:
        """The process that `name` means, if there is one by now."""
        if name == "command":
            return psutil.Process(self.command.pid)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "hvd_train" not in process.cmdline():  # programs that `ddl run` asks for their version first
                    continue
                rank = process.environ().get("OMPI_COMM_WORLD_RANK")
                launcher = rank is None and process.ppid() == self.command.pid
                if name == f"rank {rank}" or (name == "launcher" and launcher):
                    return process
        return None

    def strike(self, kill: Kill, at: float) -> None:
        """Wait `at` seconds, or until the victim is there, and send the signal; nothing where the job is over before."""
        while self._running(at) or (self.command.poll() is None and self.victim(kill.victim) is None):
            time.sleep(LOOK)
        self._look()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = self.victim(kill.victim) if self.command.poll() is None else None
            if process is not None:
                process.send_signal(getattr(signal, f"SIG{kill.signal}"))
                if kill.pause is not None:
                    time.sleep(kill.pause)
                    process.send_signal(signal.SIGCONT)

    def end(self) -> tuple[int | None, list[str]]:
        """The exit code, None where it hung, and what the attempt left."""
        while self._running(HANG):
            time.sleep(LOOK)
            self._look()
        code, faults = self.command.poll(), []
        if code is None:
            faults.append(f"did not end within {HANG:g} s")
        deadline = time.monotonic() + GONE
        while (left := list(self.processes())) and time.monotonic() < deadline and code is not None:
            time.sleep(LOOK)
        for process in left:
            with contextlib.suppress(psutil.Error):
                faults.append(f"process left: {' '.join(process.cmdline()[:6])}")
                process.kill()
        self.command.wait()
        faults += [f"shared memory left: {path}" for path in sorted(self.shared) if path.exists()]
        faults += [f"left in the temporary folder: {path.name}" for path in self._tmp.iterdir()]
        shutil.rmtree(self._tmp)
        return code, faults

    def _running(self, seconds: float) -> bool:
        return self.command.poll() is None and time.monotonic() - self.began < seconds

    def _look(self) -> None:
        """Remember the shared memory of the job's processes: once they are gone, nobody knows whose it was."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                self.shared |= {
                    Path(line.split()[-1]) for line in maps if "/dev/shm/" in line and "(deleted)" not in line
                }


def run(folder: Path, outcome: Outcome, typical: float, expected: str) -> None:
    """Disturb one run as planned, resume it until it is done, and note what was wrong."""
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
        if code == 2 or (kill is None and code != 0):
            outcome.faults.append(f"{kill}: exit code {code}")
    found = digest(out) if has_checkpoint(out) else "no checkpoint"
    if found != expected:
        outcome.faults.append("other parameters than those of an undisturbed run")
    outcome.seconds = time.monotonic() - began


def undisturbed(folder: Path) -> tuple[float, str]:
    """The seconds that a run takes, and the digest of what it ends with."""
    attempt = Attempt(folder, ["--output", "out", "model.yaml"])
    code, faults = attempt.end()
    if code or faults:
        raise SystemExit(
            f"an undisturbed run failed: exit code {code}, {faults}\n{(folder / 'output.txt').read_text()}"
        )
    return time.monotonic() - attempt.began, digest(folder / "out")


def digest(out: Path) -> str:
    """Of the model in the newest checkpoint, and of its step."""
    newest = max((out / "checkpoints").glob("step-*"))
    return f"{newest.name} {hashlib.sha256((newest / 'model.safetensors').read_bytes()).hexdigest()}"


def measure(root: Path, runs: int, seed: int, kills: int, console: Console) -> list[Outcome]:
    references: dict[str, tuple[float, str]] = {}
    outcomes = []
    for number in range(runs):
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        if name not in references:
            references[name] = undisturbed(made(root / f"undisturbed-{len(references)}", name))
        source = random.Random(f"{seed}/{number}")
        outcome = Outcome(name, source.choice((0, 0, 2)), plan(source, kills))
        folder = made(root / f"run-{number}", name)
        run(folder, outcome, *references[name])
        outcomes.append(outcome)
        struck = ", ".join(f"{kill.signal} {kill.victim}" for kill in outcome.kills)
        verdict = "; ".join(outcome.faults) or "equal"
        console.print(f"{number + 1}/{runs} {name}: {struck} -> {outcome.codes} {outcome.seconds:.0f} s: {verdict}")
        if not outcome.faults:
            shutil.rmtree(folder)
    return outcomes


def made(folder: Path, name: str) -> Path:
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
    console.print(f"{good} of {len(outcomes)} runs equal to an undisturbed one, with nothing left")
    if options.output:
        record = {"seed": options.seed, "np": NP, "good": good, "runs": [asdict(outcome) for outcome in outcomes]}
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if good < len(outcomes):
        sys.exit(f"what failed is in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
