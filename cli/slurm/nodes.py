"""Which nodes of the job around this process are lost, before SLURM itself has noticed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

SECONDS = 120
"""How long SLURM may try to reach a node that does not answer."""

_LOST = re.compile(
    r"srun: error: (?:Node failure on (\S+)|"
    r"Task launch for \S+ failed on node (\S+): (?:Communication|Socket timed out|Zero Bytes))"
)


def lost(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Nodes of this job on which SLURM can start nothing any more; it is asked to, on all of them, if there are several."""
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
    """The nodes that srun says it cannot reach, each once."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _LOST.finditer(text)))
