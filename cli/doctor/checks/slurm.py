"""SLURM: its version, and srun's PMI plugin for the MPI library.

Without it every rank is its own world.
"""

from __future__ import annotations

import os
import re
import shutil

from cli.doctor.base import Check, Finding
from cli.doctor.library import library
from cli.launch import flavor
from cli.launch.launchers import srun
from hvd_train.errors import UserError


def create() -> Check:
    return Check(_examine, on_hosts=False)


def _examine() -> Finding:
    if not shutil.which("srun"):
        return Finding("ok", "none on this machine", facts={"slurm": None})
    version, plugins = flavor.ask("srun", "--version"), flavor.ask("srun", "--mpi=list")
    number = re.search(r"^slurm\S* (\d\S*)", version.stdout, re.MULTILINE)
    if plugins.returncode or not number:
        reason = (plugins.stdout or version.stdout).strip().rpartition("\n")[2]
        remedy = "export SLURM_CONF=/path/to/slurm.conf; ignore this if the machine is in no cluster"
        return Finding("warning", f"srun is installed but finds no cluster: {reason}", remedy, {"slurm": None})
    return judge(number[1], srun.listed(plugins.stdout), os.environ.get("SLURM_JOB_ID"))


def judge(version: str, plugins: list[str], job: str | None) -> Finding:
    where = f"in job {job}" if job else "outside an allocation"
    facts = {"slurm": version, "plugins": plugins, "job": job}
    found = f"{version}, {where}, with {', '.join(plugins) or 'no PMI plugin'}"
    try:
        plugin = srun.choose_plugin(plugins, library().name)
        return Finding("ok", f"{found}: ddl uses srun --mpi={plugin}", facts=facts)
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding("warning", f"{version}, {where}: {what}", remedy, facts)
