"""The batch script of a job: data in, text out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.slurm import notation
from hvd_train import internal
from hvd_train.config import SlurmProfile
from hvd_train.errors import UserError

SCRIPT = "job.sh"
INTERFACE = (
    "OMPI_MCA_btl_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "OMPI_MCA_oob_tcp_if_include",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "HOROVOD_GLOO_IFACE",
)
"""Variables by which Open MPI, its daemons (of version 5 and of 4), NCCL, Gloo and Horovod are told their interface."""

_DIRECTIVES = (
    "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "mem", "time",
    "partition", "account", "qos", "container_image",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.,:;=@%+/\[\]()?*&|!-]+")
_ARRAY = re.compile(r"(\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*)(%\d+)?")


@dataclass(frozen=True)
class Batch:
    """One submission: what `ddl run` is given, in `workdir`, and what is asked of SLURM.

    `folder` is the run's; of an array it holds one run folder a task, named by the task's number. `sweep` has the
    overrides of each task.
    """

    name: str
    folder: Path
    workdir: Path
    run: tuple[str, ...]
    settings: SlurmProfile
    array: str | None = None
    dependency: str | None = None
    sweep: tuple[tuple[str, ...], ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Numbers of the array's tasks, all of the sweep's where `array` does not choose among them."""
        chosen = (self.array or "").partition("%")[0]
        return tuple(notation.numbers(chosen)) if chosen else tuple(map(str, range(len(self.sweep))))

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT

    @property
    def world_size(self) -> int:
        return (self.settings.nodes or 1) * (self.settings.ntasks_per_node or 1)


def text(batch: Batch, ddl: Path, python: Path) -> str:
    """The script; `ddl` and `python` are the programs of this environment. UserError where the request is none."""
    _check(batch)
    parts = (_directives(batch), _preparations(batch), _run(batch, ddl), _end(batch, python))
    return "#!/bin/bash\n" + "\n".join("".join(f"{line}\n" for line in part) for part in parts)


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
    if batch.array is not None and not _ARRAY.fullmatch(batch.array):
        raise UserError(f"--array: '{batch.array}' is no array; expected task numbers such as 0-9, 1,3,5 or 0-99%4")
    if batch.sweep and not {int(task) for task in batch.tasks} <= set(range(len(batch.sweep))):
        last = len(batch.sweep) - 1
        raise UserError(f"--array: the sweep has the combinations 0-{last}; '{batch.array}' names others")


def _directives(batch: Batch) -> Iterator[str]:
    asked = batch.settings
    yield directive("job-name", batch.name)
    for name in _DIRECTIVES:
        if getattr(asked, name) is not None:
            yield directive(name.replace("_", "-"), getattr(asked, name))
    if batch.tasks:
        yield directive("array", batch.array or f"0-{len(batch.sweep) - 1}")
    if batch.dependency is not None:
        yield directive("dependency", batch.dependency)
    yield directive("signal", f"B:USR1@{asked.notice}")
    yield "#SBATCH --requeue"
    yield "#SBATCH --open-mode=append"
    yield directive("output", str(_log(batch)))
    for name, value in asked.sbatch.items():
        yield directive(name, value)


def _log(batch: Batch) -> Path:
    folder = Path(str(batch.folder).replace("%", "%%"))
    return folder / "%a" / "slurm-%j.log" if batch.tasks else folder / "slurm-%j.log"


def _preparations(batch: Batch) -> Iterator[str]:
    asked = batch.settings
    yield "# Written by ddl submit. Edit it and submit it with sbatch as you like: it needs nothing but ddl."
    yield f"cd -- {shlex.quote(str(batch.workdir))} || exit"
    yield f"folder={shlex.quote(str(batch.folder))}" + ('/"$SLURM_ARRAY_TASK_ID"' if batch.tasks else "")
    for module in asked.modules:
        yield f"module load {shlex.quote(module)} || exit"
    yield "# A rank of an earlier attempt, on a node that was cut off, may come back and end the step that has its number."
    yield "# Ranks of this attempt get another: the numbers of earlier attempts are used up."
    yield "for ((n = 0; n < ${SLURM_RESTART_COUNT:-0}; n++)); do srun --nodes=1 --ntasks=1 --mpi=none true; done"
    names = INTERFACE if asked.interface else ()
    for variable, value in {**dict.fromkeys(names, asked.interface), **asked.environment}.items():
        yield f"export {variable}={shlex.quote(str(value))}"


def _run(batch: Batch, ddl: Path) -> Iterator[str]:
    if batch.sweep:
        yield "case $SLURM_ARRAY_TASK_ID in"
        yield from (f"  {task}) overrides=({shlex.join(batch.sweep[int(task)])}) ;;" for task in batch.tasks)
        yield "esac"
        yield ""
    yield "# Before the time limit, and on preemption, SLURM signals this shell. ddl run then lets the ranks end their step"
    yield "# and save, and exits with 75. TERM comes to ddl run by itself, as to every process of the job."
    yield "trap 'kill -USR1 \"$ddl\"' USR1"
    yield "trap : TERM"
    more = ['"${overrides[@]}"'] if batch.sweep else []
    yield f"{' '.join([shlex.quote(str(ddl)), 'run', *_words(batch.run), *more])} &"
    yield "ddl=$!"
    yield 'while kill -0 "$ddl" 2>/dev/null; do wait "$ddl"; done'
    yield 'wait "$ddl"'
    yield "code=$?"


def _words(run: Sequence[str]) -> Iterator[str]:
    """Words for the shell; the run folder is the variable of the script."""
    return (FOLDER if word == FOLDER else shlex.quote(word) for word in run)


FOLDER = '"$folder"'
"""Stands for the run folder among the words of `Batch.run`."""


def _end(batch: Batch, python: Path) -> Iterator[str]:
    asked = batch.settings
    yield "# Notes in summary.json why it ended, puts a job that was stopped in the queue again, and gives the exit code."
    told = f'"$folder" "$code" --notice={asked.notice} --max-requeues={asked.max_requeues}'
    yield f"exec {shlex.join([str(python), internal.PROGRAM])} cli.slurm.end {told}"
