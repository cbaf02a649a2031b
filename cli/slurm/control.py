"""Run the commands of SLURM and parse their output."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.hosts import notation
from hvd_train.errors import UserError

SECONDS = 30
"""Time limit of each command."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
ACTIVE = (*WAITING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")

# The name of the job, which the user chooses, comes before UserId and cannot match what follows it.
_SHOWN = re.compile(r"^JobId=(?P<id>\d+).*? UserId=.*? JobState=(?P<state>\w+) Reason=(?P<reason>.*?) Dependency=")
_FIELDS = re.compile(r" (ArrayJobId|ArrayTaskId|Restarts|ExitCode|RunTime|TimeLimit|NodeList|NumNodes)=(\S+)")

_ACCOUNT = re.compile(
    r"(?P<id>\d+)(?:_\[?(?P<task>[\d,:%-]+)\]?)?(?:\+\d+)?"
    r"\|(?P<state>[A-Z_]+\b[^|]*)\|(?P<code>\d+:\d+)\|(?P<elapsed>[^|]*)\|(?P<limit>[^|]*)\|(?P<nodes>[^|]*)"
)

_SQUEUE = ("squeue", "--me", "--noheader", "--states=all")
_QUEUED = re.compile(r"(?P<id>\d+)\|(?P<state>[A-Z_]+)\|(?P<reason>.*)")

_SETTINGS = re.compile(r"SLURM_(CONF\w*|CLUSTERS|TIME_FORMAT|DEBUG_FLAGS|JWT|SACK_\w+|BITSTR_LEN|EXIT_\w+)")
_OF_A_JOB = re.compile(r"SLURM\w*_\w+|PMIX_(?!MCA_)\w+|PMI_\w+|OMPI_COMM_WORLD_\w+")
_INPUT_VARIABLES = {
    "array": ("SBATCH_ARRAY_INX",),
    "time": ("SBATCH_TIMELIMIT",),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
}
_WHOLE_ARRAYS = {"SLURM_BITSTR_LEN": "0"}  # otherwise scontrol shortens a long list of tasks


class SlurmTimeout(UserError):
    """A command of SLURM ran into the time limit. Its request may have been carried out."""


@dataclass(frozen=True)
class JobStatus:
    """The state of a job or of an array task in SLURM.

    `task` is a list such as 0-3,7 for tasks that wait.
    """

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
    def active(self) -> bool:
        """Return True if the job runs or waits."""
        return self.state in ACTIVE

    @property
    def seconds_left(self) -> int | None:
        """The seconds until the time limit; None without one."""
        if ":" not in self.limit or ":" not in self.elapsed:
            return None
        return notation.seconds(self.limit) - notation.seconds(self.elapsed)

    @property
    def waiting(self) -> bool:
        """Return True if the job has not started, or waits after a requeue."""
        return self.state in WAITING


def submit(script: Path) -> str:
    """Submit `script` and return the number of the job.

    Other lines, such as those of a wrapper, are skipped.
    """
    answer = _output("sbatch", "--parsable", str(script), env=_for(script))
    numbers = re.findall(r"^(\d+)(?:;\S+)?$", answer, re.MULTILINE)
    if not numbers:
        raise UserError(f"sbatch printed no job number; it printed: {answer.strip() or 'nothing'}")
    return str(numbers[-1])


def refusal(script: Path) -> str | None:
    """Return why SLURM can never run `script`, or None; such a job would wait forever."""
    done = _run("sbatch", "--test-only", str(script), env=_for(script))
    if done.returncode and re.search(r"fatal:|Unable to contact|timed out", done.stderr):
        raise UserError(f"sbatch: {_error(done)}")
    return _error(done) if done.returncode else None


def states(job: str) -> tuple[JobStatus, ...]:
    """Return the states of one job; see `known`."""
    return known([job])[job]


def known(jobs: Iterable[str]) -> dict[str, tuple[JobStatus, ...]]:
    """Return the states of each job: one for a job, one or several for an array.

    The controller answers first. Jobs that it has forgotten come from accounting, and have no state
    if there is none.
    """
    shown = {job: _shown(job) for job in jobs}
    forgotten = [job for job, states in shown.items() if states is None]
    accounted = _accounted(forgotten) if forgotten else ()
    return {
        job: tuple(s for s in accounted if s.id == job) if states is None else states for job, states in shown.items()
    }


def _shown(job: str) -> tuple[JobStatus, ...] | None:
    """Return what scontrol shows; None if the controller has forgotten the job."""
    done = _run("scontrol", "--oneliner", "show", "job", job)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise UserError(f"scontrol: {_error(done)}")
    return None if done.returncode else tuple(parse(done.stdout))


def queue() -> dict[str, JobStatus]:
    """Return the states of the user's jobs by their numbers, without times and nodes.

    They include jobs that ended in the last minutes.
    """
    found = map(_QUEUED.fullmatch, _output(*_SQUEUE, "--format=%i|%T|%r").splitlines())
    return {m["id"]: JobStatus(m["id"], m["state"], "" if m["reason"] == "None" else m["reason"]) for m in found if m}


def named(name: str) -> str | None:
    """Return the number of the user's job with this name, if SLURM has one or had one in the last minutes."""
    found = re.findall(r"^\d+$", _output(*_SQUEUE, "--format=%i", f"--name={name}"), re.MULTILINE)
    return max(found, key=int, default=None)


def cancel(jobs: Iterable[str]) -> None:
    _output("scancel", *jobs)


def notify(jobs: Iterable[str]) -> None:
    """Send SIGUSR1 to the batch scripts of running `jobs`, as SLURM does before a time limit."""
    _output("scancel", "--batch", "--signal=USR1", *jobs)


def requeue(job: str) -> None:
    _output("scontrol", "requeue", job)


def environment(here: Mapping[str, str], script: str = "") -> dict[str, str]:
    """Return `here` as the environment for a command of SLURM.

    Variables of a surrounding job are dropped, except the settings of the commands. SBATCH_
    variables would override the options in a script, so those of options in the text `script` are
    dropped too.
    """
    options = re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)
    overriding = {name for option in options for name in _variables(option)}
    inside = "SLURM_JOB_ID" in here
    return {
        name: value
        for name, value in here.items()
        if name not in overriding and not (inside and _OF_A_JOB.fullmatch(name) and not _SETTINGS.fullmatch(name))
    }


def _variables(option: str) -> tuple[str, ...]:
    """Return the environment variables that sbatch reads for `option`."""
    return _INPUT_VARIABLES.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",))


def _for(script: Path) -> dict[str, str]:
    return environment(os.environ, script.read_text(encoding="utf-8"))


def parse(text: str) -> Iterator[JobStatus]:
    """Yield the states in the output of `scontrol --oneliner show job`."""
    for line in text.splitlines():
        match = _SHOWN.match(line)
        if match:
            fields = dict(_FIELDS.findall(line[match.end() :])) | dict(_FIELDS.findall(line[: match.end()]))
            yield JobStatus(
                id=match["id"],
                state=match["state"],
                reason="" if match["reason"] == "None" else match["reason"],
                task=fields.get("ArrayTaskId"),
                exit_code=_code(fields.get("ExitCode", "0:0")),
                elapsed=fields.get("RunTime", ""),
                limit=fields.get("TimeLimit", ""),
                nodes="" if fields.get("NodeList") == "(null)" else fields.get("NodeList", ""),
                restarts=int(fields.get("Restarts", "0")),
            )


def _accounted(jobs: Sequence[str]) -> tuple[JobStatus, ...]:
    """Return the states of `jobs` in accounting.

    The result is empty if there is no accounting or it does not answer.
    """
    columns = "JobID,State,ExitCode,Elapsed,Timelimit,NodeList"
    options = ("--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", f"--format={columns}")
    if not shutil.which("sacct"):
        return ()
    with contextlib.suppress(UserError):
        done = _run("sacct", *options)
        if not done.returncode:
            return tuple(accounts(done.stdout))
    return ()


def accounts(text: str) -> Iterator[JobStatus]:
    """Yield the states in the output of sacct.

    Steps (`12.batch`) and lines of another form are skipped.
    """
    for line in text.splitlines():
        match = _ACCOUNT.fullmatch(line)
        if match:
            state = match["state"].split()[0].rstrip("+")
            nodes = "" if match["nodes"] == "None assigned" else match["nodes"]
            code = _code(match["code"])
            yield JobStatus(match["id"], state, "", match["task"], code, match["elapsed"], match["limit"], nodes)


def _code(text: str) -> int:
    """Return the exit code of a shell for SLURM's `CODE:SIGNAL`."""
    code, _, number = text.partition(":")
    return int(code) or (128 + int(number) if number.isdigit() and int(number) else 0)


def _output(*argv: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command of SLURM and return its stdout; UserError if it fails."""
    done = _run(*argv, env=env)
    if done.returncode:
        raise UserError(f"{argv[0]}: {_error(done)}")
    return done.stdout


def _run(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    if not shutil.which(argv[0]):
        raise UserError(
            f"no {argv[0]} on PATH: this machine has no SLURM; log in to a machine with SLURM, or use ddl run"
        )
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
        raise SlurmTimeout(
            f"{argv[0]} did not answer within {SECONDS} s; check that SLURM's controller is up (scontrol ping)"
        ) from None


def _error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error message of a failed command, without its name before each line."""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(\w+: |\w+ failure: |slurm_)", line)]
    return "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in own or lines) or f"exit code {done.returncode}"
