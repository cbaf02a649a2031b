"""Options of Open MPI's mpirun. They have two dashes, because version 5 accepts no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cli.hosts.hostfile import format_hosts
from cli.launch.flavor import Version
from cli.launch.job import Job
from cli.launch.placement import Placement
from hvd_train.errors import UserError

# Without keepalive, a job that loses a host hangs forever, mpirun included.
_KEEPALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")


def options(job: Job, placement: Placement, version: Version, *, root: bool) -> list[str]:
    """Return all options of mpirun; `root` is True if the user is root."""
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
    """Return the requested binding, or no binding."""
    overload = ":overload-allowed" if job.bind not in {None, "none"} and placement.shared else ""
    return ["--bind-to", f"{job.bind or 'none'}{overload}"]


def parameters(placement: Placement, version: Version) -> dict[str, str]:
    """Return the MCA parameters of a run by name."""
    chosen = {}
    if version >= (5,):
        chosen["osc"] = "^ucx"  # without a UCX network, its query prints an error
    if placement.remote and version >= (5,):
        chosen["btl_tcp_flags"] = "send,inplace"  # with put, large messages often travel in one direction at a time
    if placement.shared or placement.remote:  # cores of other hosts may be busy; yielding costs 0.2 us per message
        chosen["mpi_yield_when_idle"] = "1"
    return chosen


def transports(version: Version) -> dict[str, str]:
    """Return the MCA parameter with the transports between ranks by name.

    It is a variable, because sites and users name transports too: two options of mpirun with different
    values are an error, and an option replaces the variable.
    """
    # Where this transport finds no network, it sleeps for a second before it gives up. It carries one-sided operations
    # only, messages over such a network are carried by the layer above it (mtl).
    return {"btl": "^ofi"} if version >= (5,) else {}


def variables(parameters: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """Return MCA parameters as variables, except those that the user has set in `shell`."""
    named = {f"OMPI_MCA_{name}": value for name, value in parameters.items()}
    return {name: value for name, value in named.items() if name not in shell}


def flags(placement: Placement, version: Version) -> list[str]:
    """Return the MCA parameters as options of mpirun."""
    return [word for pair in parameters(placement, version).items() for word in ("--mca", *pair)]


def ssh(job: Job, placement: Placement, version: Version) -> list[str]:
    """Return the parameter with the options for ssh, those of the user first.

    UserError for an option with a space: Open MPI splits the parameter at every space, quoted or
    not.
    """
    if not placement.remote or not placement.hosts:
        return []
    spaced = next((word for word in job.ssh if not word or any(map(str.isspace, word))), None)
    if spaced is not None:
        raise UserError(
            f"--ssh-args: Open MPI cannot pass '{spaced}' to ssh, because it contains a space; use ~/.ssh/config"
        )
    parameter = ["--prtemca", "plm_ssh_args"] if version >= (5,) else ["--mca", "plm_rsh_args"]
    return [*parameter, " ".join([*job.ssh, *_KEEPALIVE])]


def messages(job: Job) -> list[str]:
    """Return the parameter for the network between ranks."""
    return ["--mca", "btl_tcp_if_include", str(job.network)] if job.network else []


def control(job: Job, version: Version) -> list[str]:
    """Return the parameter for the network between the daemons of mpirun."""
    parameter = ["--prtemca", "prte_if_include"] if version >= (5,) else ["--mca", "oob_tcp_if_include"]
    return [*parameter, str(job.network)] if job.network else []


def _binding(job: Job, placement: Placement) -> list[str]:
    if job.bind is None and placement.cores:
        return ["--map-by", f"slot:PE={placement.cores}", "--bind-to", "core"]
    return bind_to(job, placement)


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
