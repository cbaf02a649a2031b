"""Horovod's build: its controllers, its operations, and the torch and MPI it was built for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from cli.doctor import nvidia, python
from cli.doctor.base import Check, Finding

_BUILD = "scripts/install-horovod"
_SOURCE = """\
import json
try:
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
except Exception:
    pass  # the check mpi reports it
import horovod, horovod.torch as hvd, torch
from pathlib import Path
def built(*names):
    return [name for name in names if getattr(hvd, f"{name}_built")()]
mapped = (line.split()[-1] for line in open("/proc/self/maps"))
metadata = Path(horovod.__file__).with_name("metadata.json")
print(json.dumps({
    "horovod": horovod.__version__,
    "controllers": built("mpi", "gloo"),
    "operations": built("nccl", "ddl", "ccl", "mpi", "gloo"),
    "mpi_libraries": sorted({path for path in mapped if Path(path).name.startswith("libmpi.so")}),
    "torch": torch.__version__,
    "built_for": json.loads(metadata.read_text()).get("pytorch") if metadata.exists() else None,
}))
"""


def create() -> Check:
    return Check(_examine, identical=("horovod",))


def _examine() -> Finding:
    if find_spec("horovod") is None:
        return Finding("ok", "not installed; only --engine horovod needs it", _BUILD, {"horovod": None})
    try:
        facts = python.ask(_SOURCE)
    except python.ProbeFailed as reason:
        return Finding("error", f"Horovod is installed but does not load: {reason}", _BUILD)
    return judge(facts, gpus=bool(nvidia.devices()))


def judge(facts: dict[str, Any], gpus: bool) -> Finding:
    controllers, operations = " and ".join(facts["controllers"]), ", ".join(facts["operations"])
    found = f"{facts['horovod']} with {controllers or 'no controller'}; operations {operations or 'none'}"
    if len(facts["mpi_libraries"]) > 1:
        figure = f"Horovod and mpi4py load two MPI libraries: {' and '.join(facts['mpi_libraries'])}"
        return Finding("error", figure, f"build Horovod for the library of mpi4py: {_BUILD}", facts)
    if facts["built_for"] not in {None, facts["torch"]}:
        return Finding(
            "warning", f"{found}; built for torch {facts['built_for']}, but torch is {facts['torch']}", _BUILD, facts
        )
    if "mpi" not in facts["controllers"]:
        return Finding("warning", f"{found}: mpirun and srun cannot start it without MPI", _BUILD, facts)
    if gpus and "nccl" not in facts["operations"]:
        remedy = f"HOROVOD_GPU_OPERATIONS=NCCL {_BUILD}"
        return Finding("warning", f"{found}: without NCCL, GPU tensors pass through host memory", remedy, facts)
    return Finding("ok", f"{found}; for torch {facts['torch']}", facts=facts)
