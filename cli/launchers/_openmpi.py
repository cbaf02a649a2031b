"""Options of Open MPI's mpirun; version 5 (PRRTE) knows only those with two dashes, so 4 gets them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cli.flavor import Version
from cli.hosts import format_hosts
from cli.launchers.base import Job
from cli.placement import Placement
from hvd_train.errors import UserError

# Without it, a job whose host vanishes hangs for ever, mpirun included.
_KEEPALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")


def options(job: Job, placement: Placement, version: Version, *, root: bool) -> list[str]:
    return [
        *(["--allow-run-as-root"] if root else []),
        *("--np", str(job.world_size)),
        *(["--enable-recovery"] if job.outlives and version >= (5,) else []),
        *(["--host", format_hosts(placement.hosts)] if placement.hosts else []),
        *(["--map-by", ":OVERSUBSCRIBE"] if job.oversubscribe else []),
        *_binding(job, placement),
        *flags(placement, version),
        *ssh(job, placement, version),
        *messages(job),
        *control(job, version),
        *_each("-x", (f"{key}={value}" for key, value in job.environment.items())),
        *_each("-x", (name for name in job.forward if name not in job.environment)),
    ]


def bind_to(job: Job, placement: Placement) -> list[str]:
    """The binding that was asked for, or none."""
    overload = ":overload-allowed" if job.bind not in {None, "none"} and placement.shared else ""
    return ["--bind-to", f"{job.bind or 'none'}{overload}"]


def parameters(placement: Placement, version: Version) -> dict[str, str]:
    """MCA parameters with which a run is quiet and yields cores, for a command line or, as `variables`, an environment."""
    found = {}
    if version >= (5,):
        found["osc"] = "^ucx"  # where no UCX network is, its query prints an error
    if placement.remote and version >= (5,):
        found["btl_tcp_flags"] = "send,inplace"  # with put, large messages often go one way at a time
    if placement.shared or placement.remote:  # other hosts may be busy; yielding costs 0.2 us a message
        found["mpi_yield_when_idle"] = "1"
    return found


def variables(found: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """The parameters `found` as variables, for a launcher without options for them; what the user has set in `shell` stays."""
    named = {f"OMPI_MCA_{name}": value for name, value in found.items()}
    return {name: value for name, value in named.items() if name not in shell}


def flags(placement: Placement, version: Version) -> list[str]:
    """`parameters` as options of mpirun."""
    return [word for pair in parameters(placement, version).items() for word in ("--mca", *pair)]


def ssh(job: Job, placement: Placement, version: Version) -> list[str]:
    """Words for ssh, the user's first; Open MPI cuts its parameter at every space, quoted or not."""
    if not placement.remote or not placement.hosts:
        return []
    spaced = next((word for word in job.ssh if not word or any(map(str.isspace, word))), None)
    if spaced is not None:
        raise UserError(
            f"--ssh-args: Open MPI cannot give ssh the word '{spaced}', which has a space; use ~/.ssh/config"
        )
    parameter = ["--prtemca", "plm_ssh_args"] if version >= (5,) else ["--mca", "plm_rsh_args"]
    return [*parameter, " ".join([*job.ssh, *_KEEPALIVE])]


def messages(job: Job) -> list[str]:
    """The network by which ranks talk."""
    return ["--mca", "btl_tcp_if_include", str(job.network)] if job.network else []


def control(job: Job, version: Version) -> list[str]:
    """The launcher's own words take the same way."""
    parameter = ["--prtemca", "prte_if_include"] if version >= (5,) else ["--mca", "oob_tcp_if_include"]
    return [*parameter, str(job.network)] if job.network else []


def _binding(job: Job, placement: Placement) -> list[str]:
    if job.bind is None and placement.cores:
        return ["--map-by", f"slot:PE={placement.cores}", "--bind-to", "core"]
    return bind_to(job, placement)


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
