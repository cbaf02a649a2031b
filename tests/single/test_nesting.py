"""`ddl run` below another launcher: refused in several tasks, separated from a SLURM step."""

from __future__ import annotations

import os
import subprocess

import pytest

from cli.launch import nesting
from cli.launch.job import Command
from hvd_train.errors import UserError

TASK = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_TASK_PID": "1"}
LEAKED = {
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_CPU_BIND_LIST": "0x1",
    "SLURM_MEM_BIND": "local",
    "PMIX_RANK": "0",
    "PMI_FD": "3",
    "SLURM_PMIXP_ABORT_AGENT_PORT": "1",
}
KEPT = {
    "PMIX_MCA_gds": "hash",
    "PMI_MMAP_SYNC_WAIT_TIME": "9",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_CONF": "/c",
    "A": "1",
}


@pytest.mark.parametrize(
    ("environment", "terminal", "launcher"),
    [
        ({}, False, None),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False, None),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, False, None),
        (TASK, True, None),
        ({**TASK, "PMI_SIZE": "4"}, True, None),
        (TASK, False, "srun"),
        ({**TASK, "SLURM_PROCID": "1"}, True, "srun"),
        ({**TASK, "SLURM_TASK_PID": str(os.getpid())}, True, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True, "mpirun"),
        ({"PMI_SIZE": "2"}, True, "mpirun"),
        ({"HOROVOD_SIZE": "2"}, True, "horovodrun"),
    ],
)
def test_several_tasks_are_refused_and_a_shell_is_not(
    environment: dict[str, str], terminal: bool, launcher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nesting, "_has_terminal", lambda: terminal)
    if launcher is None:
        nesting.refuse_ranks(environment)
        return
    with pytest.raises(UserError, match=f"leave out {launcher}: ddl run starts the ranks"):
        nesting.refuse_ranks(environment)


def test_what_a_step_starts_shares_its_processors_and_is_no_task_of_it() -> None:
    made = nesting.apart(Command(("srun", "true"), {"B": "2"}), {**TASK, **LEAKED, **KEPT})
    assert made.environment == {"SLURM_OVERLAP": "1", "B": "2"}
    assert made.unset == tuple(sorted(LEAKED))
    assert made.within({**LEAKED, **KEPT}) == {**KEPT, "SLURM_OVERLAP": "1", "B": "2"}
    shown = subprocess.run(
        ["sh", "-c", str(Command(("env",), made.environment, unset=made.unset))],
        env={"PATH": os.environ["PATH"], **LEAKED, **KEPT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {**KEPT, "SLURM_OVERLAP": "1", "B": "2"}.items() <= dict(
        line.split("=", 1) for line in shown.stdout.splitlines()
    ).items()
    assert not set(LEAKED) & {line.partition("=")[0] for line in shown.stdout.splitlines()}


def test_outside_of_a_step_a_command_stays_as_it_is() -> None:
    command = Command(("mpirun", "true"), {"B": "2"})
    assert nesting.apart(command, {"SLURM_JOB_ID": "1", **KEPT}) == command


@pytest.mark.parametrize(
    ("mine", "masks", "words"),
    [
        ({0}, "0x1,0x2", ("taskset", "0x3")),
        ({4}, "0x10,0x10,0xF00000000", ("taskset", "0xf00000010")),
        ({0, 1}, "0x1,0x2", ()),
        ({0, 1, 2}, "0x1,0x2", ()),
        ({5}, "0x1,0x2", ()),
    ],
)
def test_mpirun_gets_the_processors_of_all_tasks_here(
    mine: set[int], masks: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mine)
    bound = {**TASK, "SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_CPU_BIND_LIST": masks}
    found = nesting.apart(Command(("mpirun", "x")), bound)
    assert (found.prefix, found.argv) == (words, ("mpirun", "x"))
    assert str(found).endswith(" ".join((*words, "mpirun", "x")))
    assert nesting.apart(Command(("srun", "x")), bound).prefix == ()
    assert nesting.apart(Command(("mpirun", "x")), {**bound, "SLURM_CPU_BIND_TYPE": "rank"}).prefix == ()
