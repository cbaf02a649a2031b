"""Options of sbatch that `ddl submit` sets itself, each with the option of ddl that replaces it."""

from __future__ import annotations

_FLAGS = (
    "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition", "account", "qos",
    "container-image", "array", "dependency", "wait",
)  # fmt: skip
INSTEAD = {
    **{name: f"use --{name}" for name in _FLAGS},
    "ntasks": "use --np",
    "output": "the log is slurm-JOB.log in the run folder; use --output for another run folder",
    "error": "the log in the run folder has both streams, and ddl reads the end of the job from it",
    "signal": "use --notice to set the time between the signal and the limit",
    "requeue": "use --max-requeues",
    "no-requeue": "use --max-requeues 0",
    "open-mode": "a requeued job appends to its log",
    "job-name": "the job has the name of its file or module",
    "chdir": "the job runs in the folder in which ddl submit was started",
    "wrap": "the job runs the script in the run folder",
    "parsable": "ddl submit prints the number of the job",
    "test-only": "use --dry-run",
}
_WHOLE = {"gpus"}
"""Options of sbatch that are also the beginning of a name in `INSTEAD`."""


def refusal(word: str) -> str | None:
    """Return what replaces `--sbatch WORD`, or None if WORD is allowed.

    sbatch accepts abbreviations such as `outp`, so they count as the whole name.
    """
    if word in INSTEAD:
        return INSTEAD[word]
    whole = next((name for name in INSTEAD if name.startswith(word) and word not in _WHOLE), None)
    return None if whole is None else f"sbatch reads it as --{whole}: {INSTEAD[whole]}"
