"""The batch script of a job: data in, text out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.environment import is_secret
from cli.launchers import _interface
from cli.slurm import notation, options, runs
from hvd_train import internal
from hvd_train.config import SlurmProfile
from hvd_train.errors import UserError

SCRIPT = "job.sh"
_DIRECTIVES = (
    "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "mem", "time",
    "partition", "account", "qos", "container_image",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.,:;=@%+/\[\]()?*&|!-]+")


@dataclass(frozen=True)
class Batch:
    """One submission: what `ddl run` is given, in `workdir`, and what is asked of SLURM.

    `folder` is the run's; of an array it holds one run folder a task, named by the task's number. `sweep` has the
    overrides of each task. `np` is the number of ranks, where nodes do not say it.
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

    @property
    def tasks(self) -> tuple[str, ...]:
        """Numbers of the array's tasks, all of the sweep's where `array` does not choose among them."""
        return notation.tasks(self.array) if self.array else tuple(map(str, range(len(self.sweep))))

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT

    @property
    def world_size(self) -> int:
        return self.np or (self.settings.nodes or 1) * (self.settings.ntasks_per_node or 1)


def text(batch: Batch, ddl: Path, python: Path) -> str:
    """The script; `ddl` and `python` are the programs of this environment. UserError where the request is none."""
    _check(batch)
    parts = (_directives(batch), _frame(batch, python), _preparations(batch), _run(batch, ddl))
    return "#!/bin/bash\n" + "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)


def directive(option: str, value: str | int | None) -> str:
    """One line for sbatch, which takes quotes and backslashes as a shell does."""
    words = str(value)
    if not _PLAIN.fullmatch(words):
        words = '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{option}" if value is None else f"#SBATCH --{option}={words}"


def _check(batch: Batch) -> None:
    asked = batch.settings
    length = None if asked.time is None else notation.seconds(asked.time)
    if length is not None and length <= asked.notice:
        raise UserError(
            f"slurm.notice: ranks would be told {asked.notice} s before the end of a job of {length} s; "
            "ask for a longer --time or a shorter --notice"
        )
    _check_np(batch.np, asked.nodes, asked.ntasks_per_node)
    _check_array(batch)
    for word in asked.sbatch:
        instead = options.refusal(word)
        if instead:
            raise UserError(f"--sbatch {word}: ddl submit sets this by itself; {instead}")
    exported = re.findall(r"(\w+)=", str(asked.sbatch.get("export")))
    secret = next(filter(is_secret, (*asked.environment, *exported)), None)
    if secret:
        raise UserError(
            f"slurm.environment: {secret} looks like a secret, and {SCRIPT} would hold its value; export it in the shell "
            "that submits the job, which passes its variables on, and leave it out here"
        )


def _check_np(np: int | None, nodes: int | None, each: int | None) -> None:
    if np is None:
        return
    if np < 1:
        raise UserError(f"--np: expected at least 1 rank, got {np}")
    if nodes and each and np != nodes * each:
        raise UserError(
            f"--np {np}: {nodes} nodes with {each} ranks each are {nodes * each}; leave out one of the three"
        )
    if nodes and np < nodes:
        raise UserError(f"--np {np}: {nodes} nodes would have no rank each; ask for up to {np} nodes")
    if each and np % each:
        raise UserError(f"--np {np}: no number of nodes with {each} ranks each has {np}; expected a multiple of {each}")


def _check_array(batch: Batch) -> None:
    try:
        tasks = batch.tasks
    except ValueError as error:
        raise UserError(
            f"--array: '{batch.array}' {error}; expected task numbers such as 0-9, 1,3,5 or 0-99%4"
        ) from None
    if batch.sweep and not {int(task) for task in tasks} <= set(range(len(batch.sweep))):
        last = len(batch.sweep) - 1
        raise UserError(f"--array: the sweep has the combinations 0-{last}; '{batch.array}' names others")


def _directives(batch: Batch) -> list[str]:
    asked = batch.settings
    given = {name.replace("_", "-"): getattr(asked, name) for name in _DIRECTIVES}
    if not (asked.nodes and asked.ntasks_per_node):
        given["ntasks"] = batch.np
    given["array"] = batch.array or (f"0-{len(batch.sweep) - 1}" if batch.sweep else None)
    given["dependency"] = batch.dependency
    return [
        directive("job-name", batch.name),
        *(directive(name, value) for name, value in given.items() if value is not None),
        directive("signal", f"B:USR1@{asked.notice}"),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        directive("output", str(_log(batch))),
        *(directive(name, value) for name, value in asked.sbatch.items()),
    ]


def _log(batch: Batch) -> Path:
    folder = Path(str(batch.folder).replace("%", "%%"))
    return folder / "%a" / "slurm-%A_%a.log" if batch.tasks else folder / "slurm-%j.log"


def _frame(batch: Batch, python: Path) -> list[str]:
    """What surrounds the run: how its end is noted, and what signals do."""
    asked = batch.settings
    end = shlex.join([str(python), internal.PROGRAM, "cli.slurm.end"])
    told = f'"$folder" "$code" ${{ddl:+--began}} --notice={asked.notice} --max-requeues={asked.max_requeues}'
    return [
        "# Written by ddl submit. Edit it and submit it with sbatch as you like: it needs nothing but ddl.",
        f"folder={shlex.quote(str(batch.folder))}" + ('/"$SLURM_ARRAY_TASK_ID"' if batch.tasks else ""),
        "ddl=",
        "",
        "# However this script ends: notes why in the run folder, puts a job that was stopped in the queue again, and gives",
        "# the exit code of the job.",
        "end() {",
        "  code=$?",
        "  trap '' TERM USR1",
        f"  exec {end} {told}",
        "}",
        "trap end EXIT",
        "# Before the time limit, and on preemption, SLURM signals this shell. ddl run then lets the ranks end their step",
        "# and save, and exits with 75. Of two signals that come at once, bash may pass over one: both mean the same.",
        'stop() { ddl=$!; [ "$ddl" ] || exit "$1"; kill -USR1 "$ddl"; }',
        "trap 'stop 138' USR1",
        "trap 'stop 143' TERM",
        f'echo "$SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}}" > "$folder"/{runs.BEGAN}',
    ]


def _preparations(batch: Batch) -> list[str]:
    asked = batch.settings
    told = _interface.variables(asked.interface) if asked.interface else {}
    return [
        f"cd -- {shlex.quote(str(batch.workdir))} || exit",
        *(f"module load {shlex.quote(module)} || exit" for module in asked.modules),
        "# A rank of an earlier attempt, on a node that was cut off, may come back and end the step that has its number.",
        "# Ranks of this attempt get another: the numbers of earlier attempts are used up.",
        "for ((n = 0; n < ${SLURM_RESTART_COUNT:-0}; n++)); do srun --nodes=1 --ntasks=1 --mpi=none true; done",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in {**told, **asked.environment}.items()),
    ]


def _run(batch: Batch, ddl: Path) -> list[str]:
    more = ['"${overrides[@]}"'] if batch.sweep else []
    return [
        *_overrides(batch),
        f"{' '.join([shlex.quote(str(ddl)), 'run', *_words(batch.run), *more])} &",
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
    """Words for the shell; the run folder is the variable of the script."""
    return (FOLDER if word == FOLDER else shlex.quote(word) for word in run)


FOLDER = '"$folder"'
"""Stands for the run folder among the words of `Batch.run`."""
