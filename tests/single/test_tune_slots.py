"""Runs of trials on slots: which slots they get, and that slots are not idle while runs wait."""

from __future__ import annotations

import heapq
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given, strategies

from cli.hosts.hostfile import Host
from cli.tune.searcher import AHEAD
from cli.tune.slots import HERE, OVERTAKEN, Slot, Slots
from hvd_train.rank.affinity import own_slots, share

TWO = (Host("h1", 4), Host("h2", 2))


def test_a_run_gets_the_fullest_host_that_has_room() -> None:
    slots = Slots(TWO)
    assert slots.take(2) == (Slot("h2", 0), Slot("h2", 1))
    assert slots.take(3) == (Slot("h1", 0), Slot("h1", 1), Slot("h1", 2))
    assert slots.take(2) == ()
    assert slots.take(1) == (Slot("h1", 3),)


def test_a_run_that_fits_on_no_host_gets_slots_of_several() -> None:
    slots = Slots(TWO)
    taken = slots.take(5)
    assert list(map(str, taken)) == ["h1:0", "h1:1", "h1:2", "h1:3", "h2:0"]
    assert slots.placement(taken).hosts == (Host("h1", 4), Host("h2", 1))
    slots.give(taken)
    assert slots.free == slots.count == 6


def test_a_run_keeps_to_its_slots_unless_the_host_is_its_own() -> None:
    slots = Slots((Host(HERE, 4),))
    two = slots.placement(slots.take(2))
    assert (two.hosts, two.variables, two.slots) == ((), {"DDL_SLOTS": "0,1/4"}, ("localhost:0", "localhost:1"))
    assert not Slots((Host(HERE, 2),)).placement((Slot(HERE, 0), Slot(HERE, 1))).variables
    both = Slots(TWO)
    assert both.placement(both.take(5)).variables == {"DDL_SLOTS": "h1=0,1,2,3/4;h2=0/2"}


def test_user_and_port_of_a_host_reach_its_runs() -> None:
    slots = Slots((Host("h1", 4, "me", 2222),))
    assert slots.placement(slots.take(1)).hosts == (Host("h1", 1, "me", 2222),)


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("2,3/8", "any", ((2, 3), 8)),
        ("h1=2/8;h2=0,1/4", "h2", ((0, 1), 4)),
        ("h1=2/8;h2=0,1/4", "h3", ((), 0)),
    ],
)
def test_the_slots_of_a_host(text: str, host: str, expected: object) -> None:
    assert own_slots(text, host) == expected


@given(strategies.integers(1, 64), strategies.integers(1, 64))
def test_shares_are_disjoint_and_cover_the_cpus_unless_slots_outnumber_them(cpus: int, slots: int) -> None:
    shares = [share(range(cpus), slot, slots) for slot in range(slots)]
    assert all(shares)
    assert set().union(*shares) == set(range(cpus))
    if slots <= cpus:
        assert sum(map(len, shares)) == cpus


def test_a_large_run_is_overtaken_a_few_times_only() -> None:
    slots = Slots((Host("h1", 4),))
    held = [slots.take(1), slots.take(1)]
    places = []
    for _ in range(OVERTAKEN + 1):
        found = slots.take_first([4, 1])
        places.append(found and found[0])
        slots.give(found[1] if found else ())
    assert places == [1] * OVERTAKEN + [None]
    for taken in held:
        slots.give(taken)
    assert slots.take_first([4, 1]) == (0, tuple(Slot("h1", index) for index in range(4)))


@pytest.mark.parametrize(("ranks", "most"), [((1,), 0.0), ((2,), 0.0), ((1, 2), 0.03), ((1, 2, 4), 0.06)])
def test_slots_are_hardly_idle_while_runs_wait(ranks: tuple[int, ...], most: float) -> None:
    """Ten times 200 runs of random length, with a clock of the test's own."""
    assert fmean(idle_share(ranks, seed) for seed in range(10)) <= most


def idle_share(ranks: tuple[int, ...], seed: int) -> float:
    """Return the share of slot-seconds that are idle until the last run starts."""
    random_numbers = random.Random(seed)
    waiting = [(random_numbers.choice(ranks), random_numbers.expovariate(1)) for _ in range(200)]
    slots, running, now, idle, busy = Slots((Host("h1", 4), Host("h2", 4))), list[tuple[float, int]](), 0.0, 0.0, 0.0
    held: dict[int, tuple[Slot, ...]] = {}
    while waiting:
        found = slots.take_first([np for np, _ in waiting[:AHEAD]])
        if found is not None:
            held[len(held)] = found[1]
            heapq.heappush(running, (now + waiting.pop(found[0])[1], len(held) - 1))
            continue
        end, key = heapq.heappop(running)
        idle, busy = idle + slots.free * (end - now), busy + (slots.count - slots.free) * (end - now)
        now = end
        slots.give(held[key])
    return idle / (idle + busy)


ASKS = """\
import os
from hvd_train.rank import affinity
affinity.take_slots()
print(sorted(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def taken(**variables: str) -> str:
    """Return the CPUs and the GPUs that a rank with these variables uses."""
    environment = {**{k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}, **variables}
    done = subprocess.run(
        [sys.executable, "-c", ASKS], env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_rank_runs_on_the_cores_of_its_slot_and_sees_the_gpus_of_its_job() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    halves = [taken(DDL_SLOTS=f"{slot}/2") for slot in (0, 1)]
    assert len(set(halves)) == min(2, len(cpus))
    assert taken() == f"{cpus} None"
    assert taken(DDL_SLOTS="elsewhere=0/2") == f"{cpus} None"
    second = {"DDL_SLOTS": "2,3/8", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert taken(**second).endswith(" 6,7")
    assert taken(**second).partition("]")[0] == taken(DDL_SLOTS="3/8").partition("]")[0]
