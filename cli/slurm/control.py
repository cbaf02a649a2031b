"""What is asked of SLURM's own commands, and what they answer."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.slurm import notation
from hvd_train.errors import UserError

SECONDS = 30
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
GOING = (*WAITING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")

# The user's text, the name of the job, stands before the first of these.
_SHOWN = re.compile(r"^JobId=(?P<id>\d+).*? UserId=.*? JobState=(?P<state>\w+) Reason=(?P<reason>.*?) Dependency=")
_FIELDS = re.compile(r" (ArrayJobId|ArrayTaskId|Restarts|ExitCode|RunTime|TimeLimit|NodeList|NumNodes)=(\S+)")


@dataclass(frozen=True)
class State:
    """A job, or a task of an array, as SLURM knows it; `task` has several numbers where those wait together."""

    id: str
    state: str
    reason: str = ""
    task: str | None = None
    exit_code: int = 0
    elapsed: str = ""
    limit: str = ""
    nodes: str = ""

    @property
    def going(self) -> bool:
        """Whether it runs, or waits to."""
        return self.state in GOING

    @property
    def seconds_left(self) -> int | None:
        """Until the time limit, where there is one."""
        if ":" not in self.limit or ":" not in self.elapsed:
            return None
        return notation.seconds(self.limit) - notation.seconds(self.elapsed)

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def submit(script: Path) -> str:
    """The number of the job that `script` became."""
    return _ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def refusal(script: Path) -> str | None:
    """Why SLURM will never run `script`; None where it will. Submitted, an impossible job waits for ever."""
    asked = _run("sbatch", "--test-only", str(script))
    return _words(asked) if asked.returncode else None


def states(job: str) -> tuple[State, ...]:
    """The job, or its array's tasks, while SLURM remembers them; else what accounting has, where there is any."""
    asked = _run("scontrol", "--oneliner", "show", "job", job)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        raise UserError(f"scontrol: {_words(asked)}")
    return _from_accounts(job) if asked.returncode else tuple(parse(asked.stdout))


def cancel(jobs: Iterable[str]) -> None:
    _ask("scancel", *jobs)


def requeue(job: str) -> None:
    _ask("scontrol", "requeue", job)


def parse(text: str) -> Iterator[State]:
    """The states in what `scontrol --oneliner show job` prints."""
    for line in text.splitlines():
        found = _SHOWN.match(line)
        if found:
            fields = dict(_FIELDS.findall(line[found.end() :])) | dict(_FIELDS.findall(line[: found.end()]))
            yield State(
                id=found["id"],
                state=found["state"],
                reason="" if found["reason"] == "None" else found["reason"],
                task=fields.get("ArrayTaskId"),
                exit_code=_code(fields.get("ExitCode", "0:0")),
                elapsed=fields.get("RunTime", ""),
                limit=fields.get("TimeLimit", ""),
                nodes="" if fields.get("NodeList") == "(null)" else fields.get("NodeList", ""),
            )


def _from_accounts(job: str) -> tuple[State, ...]:
    columns = "JobID,State,ExitCode,Elapsed,Timelimit,NodeList"
    options = ("--allocations", "--noheader", "--parsable2", f"--jobs={job}", f"--format={columns}")
    asked = _run("sacct", *options) if shutil.which("sacct") else None
    if asked is None or asked.returncode:
        return ()
    return tuple(map(_account, asked.stdout.splitlines()))


def _account(line: str) -> State:
    name, state, code, elapsed, limit, nodes = line.split("|")
    job, _, task = name.partition("_")
    return State(job, state.split()[0], "", task or None, _code(code), elapsed, limit, nodes)


def _code(text: str) -> int:
    """A shell's code for SLURM's `CODE:SIGNAL`."""
    code, _, number = text.partition(":")
    return int(code) or (128 + int(number) if number.isdigit() and int(number) else 0)


def _ask(*argv: str) -> str:
    asked = _run(*argv)
    if asked.returncode:
        raise UserError(f"{argv[0]}: {_words(asked)}")
    return asked.stdout


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which(argv[0]):
        raise UserError(f"no {argv[0]} on PATH: this machine has no SLURM; log in to one that has, or use ddl run")
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{argv[0]} does not answer within {SECONDS} s; is SLURM's controller up (scontrol ping)?"
        ) from None


def _words(asked: subprocess.CompletedProcess[str]) -> str:
    """What a command said of its failure, without its own name in front of each line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in asked.stderr.strip().splitlines()]
    return "; ".join(line for line in lines if line) or f"ended with code {asked.returncode}"
