"""SLURM's notations, allocations, and sweeps."""

from __future__ import annotations

import pytest

from cli.hosts import allocation, notation
from cli.hosts.allocation import Allocation
from cli.hosts.hostfile import Host
from cli.launch.choose import with_threads
from cli.launch.job import Job
from cli.runs.sweep import combinations
from hvd_train.errors import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n1,login-2", ["n1", "login-2"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("gpu-[008-011]-ib,n5", ["gpu-008-ib", "gpu-009-ib", "gpu-010-ib", "gpu-011-ib", "n5"]),
        ("r[1-2]n[09-10]", ["r1n09", "r1n10", "r2n09", "r2n10"]),
        ("", []),
    ],
)
def test_hostlists(text: str, names: list[str]) -> None:
    assert list(notation.expand(text)) == names


def test_a_hostlist_of_five_thousand() -> None:
    assert len(notation.expand("n[0001-5000]")) == 5000


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", [4]), ("2(x3)", [2, 2, 2]), ("4(x2),3", [4, 4, 3]), ("1,2(x2),1", [1, 2, 2, 1]), ("", [])],
)
def test_counts_on_nodes(text: str, counts: list[int]) -> None:
    assert list(notation.counts(text)) == counts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (10, 600),
        ("10", 600),
        ("1:30", 90),
        ("2:00:01", 7201),
        ("1-0", 86400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:05", 172805),
    ],
)
def test_times(text: str | int, seconds: int) -> None:
    assert notation.seconds(text) == seconds


def test_numbers_of_an_array() -> None:
    assert list(notation.numbers("0-3,7,10-20:5")) == ["0", "1", "2", "3", "7", "10", "15", "20"]


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("01-03", "1 2 3"), ("7,0-2,2%2", "0 1 2 7"), ("0-10:5", "0 5 10"), ("0008", "8")],
)
def test_tasks_of_an_array(text: str, tasks: str) -> None:
    assert list(notation.tasks(text)) == tasks.split()


JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "4(x2),3"}
HOSTS = (Host("n1", 4), Host("n2", 4), Host("n3", 3))


@pytest.mark.parametrize(
    ("more", "threads", "cpus", "crowded"),
    [
        ({}, 1, (), [False, False]),
        ({"SLURM_JOB_CPUS_PER_NODE": "16(x2),9"}, 3, (16, 16, 9), [False, False]),
        ({"SLURM_JOB_CPUS_PER_NODE": "16(x2),9", "SLURM_CPUS_PER_TASK": "2"}, 2, (16, 16, 9), [False, False]),
        ({"SLURM_JOB_CPUS_PER_NODE": "8,7,6"}, 1, (8, 7, 6), [False, True]),
        ({"SLURM_JOB_CPUS_PER_NODE": "4(x2),1"}, 1, (4, 4, 1), [True, True]),
    ],
)
def test_an_allocation_of_unequal_nodes(
    more: dict[str, str], threads: int, cpus: tuple[int, ...], crowded: list[bool]
) -> None:
    found = allocation.here({**JOB, **more})
    assert found == Allocation("12", HOSTS, threads, cpus)
    assert [found.crowded(busy) for busy in (1, 2)] == crowded


def test_an_allocation_that_names_no_tasks_has_one_on_each_node() -> None:
    found = allocation.here({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert found == Allocation("1", (Host("n1", 1), Host("n2", 1)), 1)


def test_outside_of_slurm_there_is_no_allocation() -> None:
    assert allocation.here({}) is None


def test_ranks_of_an_allocation() -> None:
    job = Allocation("12", HOSTS, 1)
    assert (job.world_size(None), job.world_size(3), job.world_size(11)) == (11, 3, 11)
    assert job.world_size(12, oversubscribe=True) == 12
    with pytest.raises(UserError) as caught:
        job.world_size(12)
    for word in ("12 ranks", "job 12 has 11 (n1: 4, n2: 4, n3: 3)", "--ntasks-per-node", "--np 11", "--oversubscribe"):
        assert word in str(caught.value)


def test_threads_come_from_the_allocation_where_nobody_set_them() -> None:
    environment = {**JOB, "SLURM_CPUS_PER_TASK": "8"}
    job = Job(("python",), 11, "mpi", environment={"A": "1"})
    told = with_threads(job, environment).environment
    assert told == {"OMP_NUM_THREADS": "8", "A": "1"}
    assert with_threads(job, {**environment, "OMP_NUM_THREADS": "3"}) == job
    own = Job(("python",), 11, "mpi", environment={"OMP_NUM_THREADS": "2"})
    assert with_threads(own, environment).environment == {"OMP_NUM_THREADS": "2"}
    assert with_threads(job, {}) == job
    elsewhere = Job(("python",), 11, "mpi", hosts=(Host("n9", 11),))
    assert with_threads(elsewhere, environment) == elsewhere
    squeezed = Job(("python",), 12, "mpi", oversubscribe=True)
    assert with_threads(squeezed, environment) == squeezed


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        ([], []),
        (["seed=0..2"], [("seed=0",), ("seed=1",), ("seed=2",)]),
        (["a.lr=0.1,1e-3", "s=-1..0"], [("a.lr=0.1", "s=-1"), ("a.lr=0.1", "s=0"), ("a.lr=1e-3", "s=-1"), ("a.lr=1e-3", "s=0")]),
        (["model.hidden=[1,2],[3]"], [("model.hidden=[1,2]",), ("model.hidden=[3]",)]),
        (["model={name: mlp, hidden: [1]},linear"], [("model={name: mlp, hidden: [1]}",), ("model=linear",)]),
        (["x='a,b',\"c\""], [("x='a,b'",), ('x="c"',)]),
        (["s=1..2,7"], [("s=1",), ("s=2",), ("s=7",)]),
    ],
)  # fmt: skip
def test_sweeps(sweeps: list[str], expected: list[tuple[str, ...]]) -> None:
    assert list(combinations(sweeps)) == expected


@pytest.mark.parametrize(
    ("sweeps", "words"),
    [
        (["seed"], "'seed' is not a sweep; expected FIELD=VALUE,VALUE"),
        (["seed="], "is not a sweep"),
        (["=1"], "is not a sweep"),
        (["seed=1,,2"], "has an empty value"),
        (["seed=4..1"], "'4..1' in 'seed=4..1' is not a range"),
        (["seed=0..10000"], "is not a range"),
        (["a=0..999", "b=0..99"], "100,000 combinations; expected up to 10,000"),
        (["seed=1", "seed=2"], "given twice"),
    ],
)
def test_what_is_no_sweep(sweeps: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        combinations(sweeps)
