"""What a launch line depends on besides the job: this machine, and who asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import psutil

from cli import addresses
from cli.hosts import Host, merge
from cli.slurm import allocation
from cli.slurm.allocation import Allocation

_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """`packages` is the number of physical cores this process may use in each processor package.

    `whole` is False where that is not all of the machine: mpirun would bind ranks to cores outside of it.
    `allocation` is the SLURM job around this process, whose hosts mpirun and srun know by themselves.
    `addresses` are those of its interfaces, and `look_up` finds those of names.
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
        cpus = os.sched_getaffinity(0)
        return cls(
            name=os.uname().nodename,
            root=os.geteuid() == 0,
            packages=packages(cpus),
            whole=len(cpus) == os.cpu_count(),
            allocation=allocation.here(),
            addresses=frozenset(a.address.partition("%")[0] for found in psutil.net_if_addrs().values() for a in found),
            look_up=addresses.look_up,
        )

    @property
    def cores(self) -> int:
        return sum(self.packages)

    def is_named(self, host: str) -> bool:
        """Whether `host` is a name or an address of this machine."""
        return not self.others([Host(host, 1)])

    def others(self, hosts: Iterable[Host]) -> list[Host]:
        """Those of `hosts` that are not this machine, by name or else by address."""
        unknown = [host for host in hosts if host.name not in self._names]
        found = self.look_up(host.name for host in unknown)
        return [host for host in unknown if not self._has_any_of(found.get(host.name, (host.name,)))]

    def renamed(self, hosts: Sequence[Host]) -> tuple[Host, ...]:
        """`hosts` as launchers know them, which look up no addresses: this machine is localhost where it goes by another name."""
        others = {host.name for host in self.others(hosts)}
        own = (host for host in hosts if host.name not in others)
        local = {host.name: replace(host, name="localhost") for host in own if host.name not in self._names}
        return merge(local.get(host.name, host) for host in hosts)

    @property
    def _names(self) -> set[str]:
        return {"localhost", self.name, self.name.partition(".")[0]}

    def _has_any_of(self, found: Iterable[str]) -> bool:
        return any(address in self.addresses or _is_loopback(address) for address in found)


def _is_loopback(text: str) -> bool:
    """Whether `text` is an address at which every machine is itself; a name is none."""
    try:
        return ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def cores_each(packages: tuple[int, ...], ranks: int) -> int:
    """The most cores each of `ranks` can have such that none spans two packages; 0 where ranks must share."""
    return next((k for k in range(max(packages), 0, -1) if sum(p // k for p in packages) >= ranks), 0)


def packages(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> tuple[int, ...]:
    """Physical cores of each package among `cpus`, hardware threads of one core counted once."""
    cores = {
        (_read(topology, cpu, "physical_package_id"), _read(topology, cpu, "thread_siblings_list")) for cpu in cpus
    }
    return tuple(Counter(package for package, _ in sorted(cores)).values())


def _read(topology: Path, cpu: int, file: str) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / file).read_text().strip()
    except OSError:
        return "" if file == "physical_package_id" else str(cpu)
