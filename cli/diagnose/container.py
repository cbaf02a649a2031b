"""Whether this is a container, and root: Open MPI's mpirun refuses root unless told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cli.diagnose.base import Check, Finding

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
    who = _ALLOWED if root else "not root"
    if root and container is None:
        remedy = "use an account of your own: what ranks write would be root's"
        return Finding("warning", f"no container; {who}", remedy, facts)
    return Finding("ok", f"{f'a container ({container})' if container else 'no container'}; {who}", facts=facts)


def kind(root: Path, environment: Mapping[str, str]) -> str | None:
    """What sort of container the system at `root` is, by the marks that each leaves there."""
    marked = (name for mark, name in _MARKS.items() if (root / mark).exists())
    return next(
        marked, environment.get("container") or ("kubernetes" if "KUBERNETES_SERVICE_HOST" in environment else None)
    )
