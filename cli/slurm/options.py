"""Options of sbatch that a job of `ddl submit` sets by itself, and what to use instead."""

from __future__ import annotations

_FLAGS = (
    "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition", "account", "qos",
    "container-image", "array", "dependency", "wait",
)  # fmt: skip
INSTEAD = {
    **{name: f"use --{name}" for name in _FLAGS},
    "ntasks": "use --np",
    "output": "the log is slurm-JOB.log in the run folder; use --output for another run folder",
    "error": "the log in the run folder has both streams, and the end of a job is read from it",
    "signal": "use --notice for the time between the signal and the limit",
    "requeue": "use --max-requeues",
    "no-requeue": "use --max-requeues 0",
    "open-mode": "a job that was queued again adds to its log",
    "job-name": "the job has the name of its file or module",
    "chdir": "the job runs in the folder that ddl submit was started in",
    "wrap": "the job runs the script of the run folder",
    "parsable": "ddl submit prints the number of the job",
    "test-only": "use --dry-run",
}
_WHOLE = {"gpus"}
"""Options that are not short forms, though others begin alike."""


def refusal(word: str) -> str | None:
    """What to use instead of `--sbatch WORD`; None where it may be used. sbatch takes short forms such as `outp`, too."""
    if word in INSTEAD:
        return INSTEAD[word]
    whole = next((name for name in INSTEAD if name.startswith(word) and word not in _WHOLE), None)
    return None if whole is None else f"sbatch takes it for --{whole}: {INSTEAD[whole]}"
