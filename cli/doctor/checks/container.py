"""Container or not, root or not: Open MPI's mpirun rejects root unless it is allowed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cli.doctor.base import Check, Finding

_MARKS = {
    ".dockerenv": "docker",
    "run/.containerenv": "podman",
    "run/systemd/container": "systemd",
    ".singularity.d": "apptainer",
}
_ALLOWED = "root, which ddl allows mpirun (--allow-run-as-root)"


def create() -> Check:
    return Check(lambda: judge(kind(Path("/"), os.environ), root=os.geteuid() == 0))


def judge(container: str | None, root: bool) -> Finding:
    facts = {"container": container, "root": root}
    account = _ALLOWED if root else "not root"
    if root and container is None:
        remedy = "run as an ordinary user: ranks of root write files that belong to root"
        return Finding("warning", f"no container; {account}", remedy, facts)
    return Finding("ok", f"{f'a container ({container})' if container else 'no container'}; {account}", facts=facts)


def kind(root: Path, environment: Mapping[str, str]) -> str | None:
    """Return the kind of container, or None.

    It is known by a file in `root` or by a variable in `environment`.
    """
    marked = (name for mark, name in _MARKS.items() if (root / mark).exists())
    return next(
        marked, environment.get("container") or ("kubernetes" if "KUBERNETES_SERVICE_HOST" in environment else None)
    )
