"""SLURM: its version, and whether srun has a PMI plugin for the MPI library, without which every rank is alone."""

from __future__ import annotations

import os
import re
import shutil

from cli import flavor
from cli.diagnose._library import library
from cli.diagnose.base import Check, Finding
from cli.launchers import srun
from hvd_train.errors import UserError


def create() -> Check:
    return Check(_examine, on_hosts=False)


def _examine() -> Finding:
    if not shutil.which("srun"):
        return Finding("ok", "none on this machine", facts={"slurm": None})
    version, plugins = flavor.ask("srun", "--version"), flavor.ask("srun", "--mpi=list")
    told = re.search(r"^slurm\S* (\d\S*)", version.stdout, re.MULTILINE)
    if plugins.returncode or not told:
        reason = (plugins.stdout or version.stdout).strip().rpartition("\n")[2]
        remedy = "export SLURM_CONF=/path/to/slurm.conf; where this machine is in no cluster, nothing is to be done"
        return Finding("warning", f"srun is installed and finds no cluster: {reason}", remedy, {"slurm": None})
    return judge(told[1], srun.listed(plugins.stdout), os.environ.get("SLURM_JOB_ID"))


def judge(version: str, plugins: list[str], job: str | None) -> Finding:
    where = f"in job {job}" if job else "outside of an allocation"
    facts = {"slurm": version, "plugins": plugins, "job": job}
    found = f"{version}, {where}, with {', '.join(plugins) or 'no PMI plugin'}"
    try:
        return Finding("ok", f"{found}: ddl takes srun --mpi={srun.choose(plugins, library().name)}", facts=facts)
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding("warning", f"{version}, {where}: {what}", remedy, facts)
