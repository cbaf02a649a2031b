from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from cli.hosts import addresses
from cli.hosts.allocation import Allocation
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine, cores_each, packages
from cli.launch.job import Job
from cli.launch.placement import place
from hvd_train.errors import UserError

EIGHT = Machine("vm.example.org", root=False, packages=(8,))


def job(ranks: int, *hosts: Host, engine: str = "mpi", oversubscribe: bool = False) -> Job:
    return Job(("true",), ranks, engine, hosts=hosts, oversubscribe=oversubscribe)


@pytest.mark.parametrize(
    ("packages", "ranks", "cores"),
    [((8,), 2, 4), ((8,), 3, 2), ((8,), 8, 1), ((8,), 9, 0), ((3, 3), 3, 1), ((3, 3), 2, 3), ((7, 7), 5, 2)],
)
def test_cores_of_each_rank_lie_in_one_package(packages: tuple[int, ...], ranks: int, cores: int) -> None:
    assert cores_each(packages, ranks) == cores


def test_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for cpu, (package, siblings) in enumerate([(0, "0,4"), (0, "1,5"), (1, "2,6"), (1, "3,7")] * 2):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert packages(range(8), tmp_path) == (2, 2)
    assert packages({0, 4, 1}, tmp_path) == (2,)
    assert packages({0, 1}, tmp_path / "absent") == (2,)


def test_without_hosts_this_machine_has_a_slot_for_every_rank() -> None:
    placement = place(job(16), EIGHT)
    assert placement.hosts == (Host("localhost", 16),)
    assert placement.notes == ("16 ranks share 8 cores",)
    assert (placement.shared, placement.cores, placement.remote) == (True, 0, False)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "vm", "vm.example.org"])
def test_a_name_of_this_machine_is_not_remote(name: str) -> None:
    placement = place(job(4, Host(name, 4)), EIGHT)
    assert (placement.remote, placement.cores) == (False, 2)


ADDRESSES = {"vm.lan": ("192.168.0.7",), "old": ("127.0.1.1",), "n1": ("192.168.0.8",), "six": ("fe80::7%eth0",)}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("192.168.0.7", True),
        ("vm.lan", True),
        ("old", True),
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("fe80::7", True),
        ("vm.example.org", True),
        ("n1", False),
        ("192.168.0.8", False),
        ("unknown", False),
        ("vm.other.org", False),
    ],
)
def test_a_machine_is_known_by_its_names_and_by_its_addresses(name: str, own: bool) -> None:
    def look_up(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {name: ADDRESSES.get(name, ()) if name[0].isalpha() and ":" not in name else (name,) for name in names}

    machine = dataclasses.replace(EIGHT, addresses=frozenset({"192.168.0.7", "fe80::7"}), look_up=look_up)
    assert machine.is_named(name) == own
    assert machine.others([Host("vm", 1), Host(name, 2)]) == ([] if own else [Host(name, 2)])
    if ":" not in name:
        called = name if not own or name == "vm.example.org" else "localhost"
        assert place(job(3, Host("n9", 1), Host(name, 2)), machine).hosts == (Host("n9", 1), Host(called, 2))


def test_this_machine_knows_its_addresses_and_looks_a_name_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(addresses, "_resolve_one", lambda name: asked.append(name) or addresses.Lookup(("127.0.1.1",)))
    here = Machine.here()
    assert "127.0.0.1" in here.addresses
    assert here.others([Host("some.alias.invalid", 1)] * 2) == here.others([Host("some.alias.invalid", 3)]) == []
    assert asked == ["some.alias.invalid"]


def test_ranks_are_bound_only_where_their_cores_are_known_and_theirs() -> None:
    assert place(job(4), EIGHT).cores == 2
    assert place(job(1), EIGHT).cores == 0
    assert place(job(4, Host("n1", 4)), EIGHT).cores == 0
    assert place(job(4, oversubscribe=True), EIGHT).cores == 0
    assert place(job(4), Machine("vm", False, (8,), whole=False)).cores == 0


def test_a_rank_of_horovod_keeps_two_cores_busy() -> None:
    assert place(job(4, engine="horovod"), EIGHT).cores == 2
    crowded = place(job(8, engine="horovod"), EIGHT)
    assert (crowded.cores, crowded.shared, crowded.notes) == (0, True, ())
    alone = place(job(8), EIGHT)
    assert (alone.cores, alone.shared) == (1, False)


def test_an_allocation_knows_its_hosts() -> None:
    allocated = Machine(
        "n1", root=False, packages=(2,), allocation=Allocation("12", (Host("n1", 4), Host("n2", 4)), 1, (4, 4))
    )
    placement = place(job(8), allocated)
    assert (placement.hosts, placement.remote, placement.cores, placement.notes) == ((), True, 0, ())
    assert place(job(2, Host("n1", 2)), allocated).remote
    assert (placement.shared, place(job(8, engine="horovod"), allocated).shared) == (False, True)
    alone = Machine("n1", root=False, packages=(2,), allocation=Allocation("12", (Host("n1", 4),), 1))
    assert (place(job(4), alone).remote, place(job(4), alone).shared) == (False, False)


def test_missing_slots_are_refused_or_spread() -> None:
    hosts = (Host("n1", 2), Host("n2", 2))
    with pytest.raises(UserError, match=r"6 ranks .* 2 too few \(n1: 2, n2: 2\)"):
        place(job(6, *hosts), EIGHT)
    assert place(job(6, *hosts, oversubscribe=True), EIGHT).hosts == (Host("n1", 3), Host("n2", 3))


def test_an_address_that_no_launcher_takes() -> None:
    with pytest.raises(UserError, match="IPv6 address such as fe80::1"):
        place(job(1, Host("fe80::1", 1)), EIGHT)
