"""The searcher as a small job of SLURM, which requeues itself and goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.arguments.submission import yaml_work
from cli.launch.entrypoint import YamlFile
from cli.output.streams import say
from cli.runs.records import Submitted
from cli.slurm import profiles, submit
from cli.slurm.batch import FOLDER, Batch
from cli.slurm.schema import SlurmProfile, SlurmSection

MEMORY = "2G"
_REQUEUES = 1_000_000
"""A search may outlast any number of time limits."""


def submit_searcher(folder: Path, file: YamlFile, words: Sequence[str], flags: Mapping[str, Any]) -> str:
    """Submit `ddl tune --resume FOLDER WORDS` and return the number of the job.

    `flags` are fields of `slurm:` from the command line, which override those of `file`. UserError
    if SLURM refuses the job.
    """
    work = yaml_work(file, ())
    requested = profiles.settings(flags, work.slurm or SlurmSection(), profiles.folders(), work.place)
    run, name = ("--resume", FOLDER, *words), f"tune-{work.name}"
    batch = Batch(name, folder.absolute(), Path.cwd(), run, small(requested), np=1, command="tune")
    job = submit.enqueue(batch.script, submit.script(batch), [Submitted(batch.folder, None)])
    print(job)
    say(f"{submit.relative(batch.folder)}: job {job} searches and requeues itself")
    return job


def small(requested: SlurmProfile) -> SlurmProfile:
    """Return the request of a trial cut down to one task, without GPUs and further options of sbatch."""
    kept = requested.model_dump(
        exclude_unset=True, exclude={"nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "sbatch"}
    )
    return SlurmProfile(**{**kept, "mem": MEMORY, "max_requeues": _REQUEUES})
