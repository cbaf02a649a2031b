"""CPUs that this process may use, and the threads of each rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cli.doctor.base import Check, Finding
from cli.hosts.machine import Machine
from hvd_train.rank.affinity import threads

CGROUPS = Path("/sys/fs/cgroup")


def create() -> Check:
    return Check(lambda: judge(Machine.here().cores, len(os.sched_getaffinity(0)), quota(), os.environ))


def judge(cores: int, processors: int, allowance: float | None, environment: Mapping[str, str]) -> Finding:
    machine = os.cpu_count() or 1
    set_threads = environment.get("OMP_NUM_THREADS", "")
    each = int(set_threads) if set_threads.isdigit() else threads(processors, machine, cores)
    facts = {"machine": machine, "processors": processors, "cores": cores, "quota": allowance, "threads": each}
    found = f"{processors} of {machine} CPUs, {cores} cores"
    if allowance is not None and allowance < processors:
        remedy = (
            f"start at most {max(1, int(allowance))} ranks: ddl run --np {max(1, int(allowance))} -x OMP_NUM_THREADS=1"
        )
        return Finding("warning", f"{found}, but the quota of the container is {allowance:g} CPUs", remedy, facts)
    if each > processors:
        figure = f"{found}, but OMP_NUM_THREADS={set_threads} gives every rank more threads"
        return Finding("warning", figure, "unset OMP_NUM_THREADS: ddl then sets a number that fits", facts)
    noun = "thread" if each == 1 else "threads"
    return Finding("ok", f"{found}: with --np {cores}, {each} {noun} a rank", facts=facts)


def quota(root: Path = CGROUPS) -> float | None:
    """Return the CPU quota of the cgroup (v2, else v1) as a number of CPUs, or None."""
    for files, unlimited in ((("cpu.max",), "max"), (("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"), "-1")):
        if all((root / file).is_file() for file in files):
            limit, period = " ".join((root / file).read_text() for file in files).split()
            return None if limit == unlimited else int(limit) / int(period)
    return None
