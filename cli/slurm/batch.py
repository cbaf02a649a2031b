"""Make the text of a batch script from the data of a job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.hosts import notation
from cli.launch import interface
from cli.launch.environment import is_secret
from cli.runs import records
from cli.slurm import options
from cli.slurm.schema import SlurmProfile
from hvd_train.errors import UserError
from hvd_train.rank import internal

SCRIPT = "job.sh"
_DIRECTIVES = (
    "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "mem", "time",
    "partition", "account", "qos", "container_image",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.,:;=@%+/\[\]()?*&|!-]+")


@dataclass(frozen=True)
class Batch:
    """One submission: the words of `ddl run`, which starts in `workdir`, and the request to SLURM.

    `command` is the command of ddl if it is another one than `run`.

    `folder` is the run folder. For an array, it holds one run folder per task, named by the number
    of the task. `sweep` has the overrides of each task. `np` is the number of ranks, None if the
    numbers of nodes and of ranks on each node determine it.
    """

    name: str
    folder: Path
    workdir: Path
    run: tuple[str, ...]
    settings: SlurmProfile
    array: str | None = None
    dependency: str | None = None
    sweep: tuple[tuple[str, ...], ...] = ()
    np: int | None = None
    command: str = "run"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The numbers of the array tasks: those in `array`, or one per combination of the sweep."""
        return notation.tasks(self.array) if self.array else tuple(map(str, range(len(self.sweep))))

    @property
    def script(self) -> Path:
        """The path of the batch script."""
        return self.folder / SCRIPT

    @property
    def world_size(self) -> int:
        """The number of ranks of one task."""
        return self.np or (self.settings.nodes or 1) * (self.settings.ntasks_per_node or 1)


def text(batch: Batch, ddl: Path, python: Path) -> str:
    """Return the script; `ddl` and `python` are the programs of this environment.

    UserError for an invalid request.
    """
    _check(batch)
    parts = (_directives(batch), _frame(batch, python), _preparations(batch), _run(batch, ddl))
    return "#!/bin/bash\n" + "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)


def directive(option: str, value: str | int | None) -> str:
    """Return one line for sbatch, which parses quotes and backslashes as a shell does."""
    text = str(value)
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{option}" if value is None else f"#SBATCH --{option}={text}"


def _check(batch: Batch) -> None:
    settings = batch.settings
    length = None if settings.time is None else notation.seconds(settings.time)
    if length is not None and length <= settings.notice:
        raise UserError(
            f"slurm.notice: ranks would be signalled {settings.notice} s before the end of a job of {length} s; "
            "request a longer --time or a shorter --notice"
        )
    _check_np(batch.np, settings.nodes, settings.ntasks_per_node)
    _check_array(batch)
    for word in settings.sbatch:
        instead = options.refusal(word)
        if instead:
            raise UserError(f"--sbatch {word}: ddl submit sets this option itself; {instead}")
    exported = re.findall(r"(\w+)=", str(settings.sbatch.get("export")))
    secret = next(filter(is_secret, (*settings.environment, *exported)), None)
    if secret:
        raise UserError(
            f"slurm.environment: {secret} looks like a secret, and {SCRIPT} would contain its value; leave it out here "
            "and export it in the shell that submits the job: SLURM passes the variables of that shell on"
        )


def _check_np(np: int | None, nodes: int | None, each: int | None) -> None:
    if np is None:
        return
    if np < 1:
        raise UserError(f"--np: expected at least 1 rank, got {np}")
    if nodes and each and np != nodes * each:
        raise UserError(
            f"--np {np}: {nodes} nodes with {each} ranks each are {nodes * each} ranks; leave out one of the three"
        )
    if nodes and np < nodes:
        raise UserError(f"--np {np}: each of the {nodes} nodes needs a rank; request more ranks or fewer nodes")
    if each and np % each:
        raise UserError(f"--np {np}: {each} ranks on each node cannot add up to {np}; expected a multiple of {each}")


def _check_array(batch: Batch) -> None:
    try:
        tasks = batch.tasks
    except ValueError as error:
        raise UserError(
            f"--array: '{batch.array}' {error}; expected task numbers such as 0-9, 1,3,5 or 0-99%4"
        ) from None
    if batch.sweep and not {int(task) for task in tasks} <= set(range(len(batch.sweep))):
        last = len(batch.sweep) - 1
        raise UserError(f"--array: the sweep has the combinations 0-{last}; '{batch.array}' has other numbers")


def _directives(batch: Batch) -> list[str]:
    settings = batch.settings
    given = {name.replace("_", "-"): getattr(settings, name) for name in _DIRECTIVES}
    if not (settings.nodes and settings.ntasks_per_node):
        given["ntasks"] = batch.np
    given["array"] = batch.array or (f"0-{len(batch.sweep) - 1}" if batch.sweep else None)
    given["dependency"] = batch.dependency
    return [
        directive("job-name", batch.name),
        *(directive(name, value) for name, value in given.items() if value is not None),
        directive("signal", f"B:USR1@{settings.notice}"),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        directive("output", str(_log(batch))),
        *(directive(name, value) for name, value in settings.sbatch.items()),
    ]


def _log(batch: Batch) -> Path:
    folder = Path(str(batch.folder).replace("%", "%%"))
    return folder / "%a" / "slurm-%A_%a.log" if batch.tasks else folder / "slurm-%j.log"


def _frame(batch: Batch, python: Path) -> list[str]:
    """Return the part that handles signals and the end of the script."""
    settings = batch.settings
    end = shlex.join([str(python), internal.PROGRAM, "cli.slurm.end"])
    arguments = f'"$folder" "$code" ${{ddl:+--began}} --notice={settings.notice} --max-requeues={settings.max_requeues}'
    return [
        "# Written by ddl. You may edit this script and submit it with sbatch; it needs only ddl.",
        f"folder={shlex.quote(str(batch.folder))}" + ('/"$SLURM_ARRAY_TASK_ID"' if batch.tasks else ""),
        "ddl=",
        "",
        "# Runs at every end of this script: writes the cause to the run folder, requeues a job that was stopped, and sets",
        "# the exit code of the job.",
        "end() {",
        "  code=$?",
        "  trap '' TERM USR1",
        f"  exec {end} {arguments}",
        "}",
        "trap end EXIT",
        "# SLURM signals this shell before the time limit and on preemption. ddl then saves its state and exits with 75.",
        "# Bash may lose one of two simultaneous signals; both have the same effect.",
        'stop() { ddl=$!; [ "$ddl" ] || exit "$1"; kill -USR1 "$ddl"; }',
        "trap 'stop 138' USR1",
        "trap 'stop 143' TERM",
        f'echo "$SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}}" > "$folder"/{records.BEGAN}',
    ]


def _preparations(batch: Batch) -> list[str]:
    settings = batch.settings
    network = interface.variables(settings.interface) if settings.interface else {}
    return [
        f"cd -- {shlex.quote(str(batch.workdir))} || exit",
        *(f"module load {shlex.quote(module)} || exit" for module in settings.modules),
        *(_STEPS if batch.command == "run" else ()),
        *(f"export {name}={shlex.quote(str(value))}" for name, value in {**network, **settings.environment}.items()),
    ]


_STEPS = (
    "# A rank of an earlier attempt, on a node that was cut off, may return and end the step with its step number.",
    "# The steps below use up the numbers of the earlier attempts, so that the ranks of this attempt get another.",
    "for ((n = 0; n < ${SLURM_RESTART_COUNT:-0}; n++)); do srun --nodes=1 --ntasks=1 --mpi=none true; done",
)


def _run(batch: Batch, ddl: Path) -> list[str]:
    more = ['"${overrides[@]}"'] if batch.sweep else []
    return [
        *_overrides(batch),
        f"{' '.join([shlex.quote(str(ddl)), batch.command, *_words(batch.run), *more])} &",
        "ddl=$!",
        'while kill -0 "$ddl" 2>/dev/null; do wait "$ddl"; done',
        'wait "$ddl"',
        "exit",
    ]


def _overrides(batch: Batch) -> Iterator[str]:
    if batch.sweep:
        yield "case $SLURM_ARRAY_TASK_ID in"
        yield from (f"  {task}) overrides=({shlex.join(batch.sweep[int(task)])}) ;;" for task in batch.tasks)
        yield "esac"
        yield ""


def _words(run: Sequence[str]) -> Iterator[str]:
    """Quote the words for the shell; the run folder becomes the variable of the script."""
    return (FOLDER if word == FOLDER else shlex.quote(word) for word in run)


FOLDER = '"$folder"'
"""Stands for the run folder among the words of `Batch.run`."""
