"""Detect lost nodes of the surrounding job before SLURM marks them as down."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

SECONDS = 120
"""Time limit of the test step: SLURM takes this long to give up on a node that does not answer."""

_LOST = re.compile(
    r"srun: error: (?:Node failure on (\S+)|"
    r"Task launch for \S+ failed on node (\S+): (?:Communication|Socket timed out|Zero Bytes))"
)


def lost(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the nodes of this job on which SLURM cannot start a step any more.

    A job of several nodes starts a test step on all of them. A job of one node tests nothing.
    """
    count = environment.get("SLURM_JOB_NUM_NODES", "1")
    if count == "1":
        return ()
    argv = ["srun", "--overlap", "--mpi=none", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "true"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return named(done.stderr)


def named(text: str) -> tuple[str, ...]:
    """Return the nodes that srun reports as unreachable in `text`, each once."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _LOST.finditer(text)))
