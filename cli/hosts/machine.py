"""Facts about this machine that a launch command depends on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import psutil

from cli.hosts import addresses, allocation
from cli.hosts.allocation import Allocation
from cli.hosts.hostfile import Host, merge

_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """A machine.

    `packages` has the number of physical cores that this process may use in each CPU package.

    `whole` is False if the process may not use all cores: mpirun would bind ranks to other cores
    too. `allocation` is the SLURM job around this process; mpirun and srun know its hosts
    themselves. `addresses` are the addresses of the interfaces, and `look_up` returns the addresses
    of names.
    """

    name: str
    root: bool
    packages: tuple[int, ...]
    whole: bool = True
    allocation: Allocation | None = None
    addresses: frozenset[str] = frozenset()
    look_up: Callable[[Iterable[str]], dict[str, tuple[str, ...]]] = field(default=lambda names: {})

    @classmethod
    def here(cls) -> Machine:
        """Return the facts about this machine."""
        cpus = os.sched_getaffinity(0)
        return cls(
            name=os.uname().nodename,
            root=os.geteuid() == 0,
            packages=packages(cpus),
            whole=len(cpus) == os.cpu_count(),
            allocation=allocation.here(),
            addresses=frozenset(
                a.address.partition("%")[0] for interface in psutil.net_if_addrs().values() for a in interface
            ),
            look_up=addresses.look_up,
        )

    @property
    def cores(self) -> int:
        """The number of physical cores that this process may use."""
        return sum(self.packages)

    def is_named(self, host: str) -> bool:
        """Return True if `host` is a name or an address of this machine."""
        return not self.others([Host(host, 1)])

    def others(self, hosts: Iterable[Host]) -> list[Host]:
        """Return the hosts that are not this machine, by their names or addresses."""
        unknown = [host for host in hosts if host.name not in self._names]
        resolved = self.look_up(host.name for host in unknown)
        return [host for host in unknown if not self._has_any_of(resolved.get(host.name, (host.name,)))]

    def ranks_here(self, hosts: Sequence[Host], np: int) -> int:
        """Return how many of `np` ranks run on this machine, at most its slots among `hosts`."""
        others = {host.name for host in self.others(hosts)}
        return min(np, sum(host.slots for host in hosts if host.name not in others)) if hosts else np

    @staticmethod
    def available_memory() -> int:
        """Return the bytes of memory that processes can use without swapping."""
        return int(psutil.virtual_memory().available)

    def renamed(self, hosts: Sequence[Host]) -> tuple[Host, ...]:
        """Return `hosts` with localhost for other names of this machine.

        Launchers do not resolve names, so they would not recognize this machine.
        """
        others = {host.name for host in self.others(hosts)}
        own = (host for host in hosts if host.name not in others)
        local = {host.name: replace(host, name="localhost") for host in own if host.name not in self._names}
        return merge(local.get(host.name, host) for host in hosts)

    @property
    def _names(self) -> set[str]:
        return {"localhost", self.name, self.name.partition(".")[0]}

    def _has_any_of(self, addresses: Iterable[str]) -> bool:
        return any(address in self.addresses or _is_loopback(address) for address in addresses)


def _is_loopback(text: str) -> bool:
    """Return True if `text` is a loopback address, and False if it is a name."""
    try:
        return ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def cores_each(packages: tuple[int, ...], ranks: int) -> int:
    """Return the largest number of cores per rank such that no rank spans two packages.

    The number is 0 if ranks must share cores.
    """
    return next((k for k in range(max(packages), 0, -1) if sum(p // k for p in packages) >= ranks), 0)


def packages(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> tuple[int, ...]:
    """Return the number of physical cores of each package among `cpus`.

    Hardware threads of one core count once.
    """
    cores = {
        (_read(topology, cpu, "physical_package_id"), _read(topology, cpu, "thread_siblings_list")) for cpu in cpus
    }
    return tuple(Counter(package for package, _ in sorted(cores)).values())


def _read(topology: Path, cpu: int, file: str) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / file).read_text().strip()
    except OSError:
        return "" if file == "physical_package_id" else str(cpu)
