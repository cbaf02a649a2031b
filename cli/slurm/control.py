"""What is asked of SLURM's own commands, and what they answer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

_ACCOUNT = re.compile(
    r"(?P<id>\d+)(?:_\[?(?P<task>[\d,:%-]+)\]?)?(?:\+\d+)?"
    r"\|(?P<state>[A-Z_]+\b[^|]*)\|(?P<code>\d+:\d+)\|(?P<elapsed>[^|]*)\|(?P<limit>[^|]*)\|(?P<nodes>[^|]*)"
)

_SETTINGS = re.compile(r"SLURM_(CONF\w*|CLUSTERS|TIME_FORMAT|DEBUG_FLAGS|JWT|SACK_\w+|BITSTR_LEN|EXIT_\w+)")
_OF_A_JOB = re.compile(r"SLURM\w*_\w+|PMIX_(?!MCA_)\w+|PMI_\w+|OMPI_COMM_WORLD_\w+")
_OTHERWISE = {
    "array": ("SBATCH_ARRAY_INX",),
    "time": ("SBATCH_TIMELIMIT",),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
}
_WHOLE_ARRAYS = {"SLURM_BITSTR_LEN": "0"}  # else a long list of tasks ends in dots


class NoAnswer(UserError):
    """A command of SLURM that did not end in time; what it was asked for may have happened."""


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
    restarts: int = 0

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
    """The number of the job that `script` became; other lines, as of a wrapper that greets, are passed over."""
    answer = _ask("sbatch", "--parsable", str(script), env=_for(script))
    numbers = re.findall(r"^(\d+)(?:;\S+)?$", answer, re.MULTILINE)
    if not numbers:
        raise UserError(f"sbatch gave no job's number; it said: {answer.strip() or 'nothing'}")
    return str(numbers[-1])


def refusal(script: Path) -> str | None:
    """Why SLURM will never run `script`; None where it will. Submitted, an impossible job waits for ever."""
    asked = _run("sbatch", "--test-only", str(script), env=_for(script))
    if asked.returncode and re.search(r"fatal:|Unable to contact|timed out", asked.stderr):
        raise UserError(f"sbatch: {_words(asked)}")
    return _words(asked) if asked.returncode else None


def states(job: str) -> tuple[State, ...]:
    """The job, or its array's tasks; see `known`."""
    return known([job])[job]


def known(jobs: Iterable[str]) -> dict[str, tuple[State, ...]]:
    """Each job, or its array's tasks, while SLURM remembers them; else what accounting has, where there is any."""
    found = {job: _shown(job) for job in jobs}
    gone = [job for job, shown in found.items() if shown is None]
    kept = _from_accounts(gone) if gone else ()
    return {job: tuple(s for s in kept if s.id == job) if shown is None else shown for job, shown in found.items()}


def _shown(job: str) -> tuple[State, ...] | None:
    """What scontrol shows; None where it has forgotten the job."""
    asked = _run("scontrol", "--oneliner", "show", "job", job)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        raise UserError(f"scontrol: {_words(asked)}")
    return None if asked.returncode else tuple(parse(asked.stdout))


def cancel(jobs: Iterable[str]) -> None:
    _ask("scancel", *jobs)


def requeue(job: str) -> None:
    _ask("scontrol", "requeue", job)


def environment(here: Mapping[str, str], script: str = "") -> dict[str, str]:
    """`here` for SLURM's commands: of a job that this process is in, only the settings of those commands.

    sbatch lets SBATCH_ variables win over the options in a script; those of options that `script` has are left out.
    """
    told = {name for option in re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE) for name in _variables(option)}
    inside = "SLURM_JOB_ID" in here
    return {
        name: value
        for name, value in here.items()
        if name not in told and not (inside and _OF_A_JOB.fullmatch(name) and not _SETTINGS.fullmatch(name))
    }


def _variables(option: str) -> tuple[str, ...]:
    """The variables by which sbatch is told an option, too."""
    return _OTHERWISE.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",))


def _for(script: Path) -> dict[str, str]:
    return environment(os.environ, script.read_text(encoding="utf-8"))


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
                restarts=int(fields.get("Restarts", "0")),
            )


def _from_accounts(jobs: Sequence[str]) -> tuple[State, ...]:
    columns = "JobID,State,ExitCode,Elapsed,Timelimit,NodeList"
    options = ("--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", f"--format={columns}")
    if not shutil.which("sacct"):
        return ()
    with contextlib.suppress(UserError):  # accounting that does not answer knows nothing
        asked = _run("sacct", *options)
        if not asked.returncode:
            return tuple(accounts(asked.stdout))
    return ()


def accounts(text: str) -> Iterator[State]:
    """The states in what sacct prints; steps (`12.batch`) and lines of another form are passed over."""
    for line in text.splitlines():
        found = _ACCOUNT.fullmatch(line)
        if found:
            state = found["state"].split()[0].rstrip("+")
            nodes = "" if found["nodes"] == "None assigned" else found["nodes"]
            code = _code(found["code"])
            yield State(found["id"], state, "", found["task"], code, found["elapsed"], found["limit"], nodes)


def _code(text: str) -> int:
    """A shell's code for SLURM's `CODE:SIGNAL`."""
    code, _, number = text.partition(":")
    return int(code) or (128 + int(number) if number.isdigit() and int(number) else 0)


def _ask(*argv: str, env: Mapping[str, str] | None = None) -> str:
    asked = _run(*argv, env=env)
    if asked.returncode:
        raise UserError(f"{argv[0]}: {_words(asked)}")
    return asked.stdout


def _run(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    if not shutil.which(argv[0]):
        raise UserError(f"no {argv[0]} on PATH: this machine has no SLURM; log in to one that has, or use ddl run")
    try:
        return subprocess.run(
            argv,
            env={**(env or environment(os.environ)), **_WHOLE_ARRAYS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"{argv[0]} does not answer within {SECONDS} s; is SLURM's controller up (scontrol ping)?"
        ) from None


def _words(asked: subprocess.CompletedProcess[str]) -> str:
    """What a command said of its failure, without its own name in front of each line, and without a wrapper's greeting."""
    lines = [line for line in asked.stderr.strip().splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(\w+: |\w+ failure: |slurm_)", line)]
    return (
        "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in own or lines)
        or f"ended with code {asked.returncode}"
    )
