"""`ddl status` and `ddl results` with a job that SLURM, only accounting, or neither knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.runs import records, tables
from cli.runs.records import Submitted
from cli.slurm import control, end, jobs, status
from cli.slurm.end import End
from hvd_train.errors import UserError
from tests.cluster import fake_slurm
from tests.cluster.fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


UNKNOWN = "unknown: SLURM has forgotten the job"


Seen = tuple[str, str, int | None, str]
"""State, cause and exit code in `ddl status`, and the end in `ddl results`."""


@dataclass(frozen=True)
class Case:
    """The files of a job, SLURM's answer, and the expected output.

    `unseen` if only the folder knows.
    """

    state: str
    seen: Seen
    unseen: Seen
    reason: str = "None"
    code: str = "0:0"
    began: str | None = None
    ends: tuple[End, ...] = field(default=())


def ended(cause: Any, code: int, again: bool = False, restarts: int = 0, job: str = "12") -> End:
    return End(job, cause, code, again, int(again), restarts)


GONE: Seen = ("FORGOTTEN", "", None, UNKNOWN)
STOPPED = ended("preemption", 75, again=True)
ALIKE = {
    "finished": Case("COMPLETED", *2 * (("COMPLETED", "finished", 0, "finished"),), ends=(ended("finished", 0),)),
    "module": Case(
        "FAILED",
        *2 * (("FAILED", "preparation", 127, "preparation (exit code 127)"),),
        "NonZeroExitCode",
        "127:0",
        ends=(ended("preparation", 127),),
    ),
    "failed": Case(
        "FAILED",
        *2 * (("FAILED", "failure", 1, "failure (exit code 1)"),),
        "NonZeroExitCode",
        "1:0",
        ends=(ended("failure", 1),),
    ),
    "time limit": Case(
        "TIMEOUT",
        *2 * (("TIMEOUT", "time limit", 124, "time limit (exit code 124)"),),
        "TimeLimit",
        "0:15",
        ends=(ended("time limit", 124),),
    ),
    "cancelled": Case("CANCELLED", *2 * (("CANCELLED", "cancelled", 75, "cancelled"),), ends=(ended("cancelled", 75),)),
    "failed in a second attempt": Case(
        "FAILED",
        *2 * (("FAILED", "failure", 1, "failure (exit code 1)"),),
        code="1:0",
        began="12 1",
        ends=(STOPPED, ended("failure", 1, restarts=1)),
    ),
}
CASES = {
    **ALIKE,
    "cancelled while it waits": Case(
        "CANCELLED",
        ("CANCELLED", "cancelled", 143, "cancelled (exit code 143)"),
        ("FORGOTTEN", "never began", None, f"{UNKNOWN} (never began)"),
    ),
    "cancelled while it waits again": Case(
        "CANCELLED",
        ("CANCELLED", "cancelled", 143, "cancelled (exit code 143)"),
        GONE,
        "BeginTime",
        began="12 0",
        ends=(STOPPED,),
    ),
    "node lost": Case(
        "NODE_FAIL", ("NODE_FAIL", "node failure", 69, "node failure (exit code 69)"), GONE, "NodeDown", began="12 0"
    ),
    "memory": Case(
        "OUT_OF_MEMORY",
        ("OUT_OF_MEMORY", "out of memory", 1, "out of memory (exit code 1)"),
        ("FAILED", "failure", 1, "failure (exit code 1)"),
        "OutOfMemory",
        "0:125",
        ends=(ended("failure", 1),),
    ),
    "preempted": Case(
        "PREEMPTED", ("PREEMPTED", "preemption", 143, "preemption (exit code 143)"), GONE, "None", "0:15", "12 0"
    ),
    "killed": Case("FAILED", ("FAILED", "", 137, "FAILED (exit code 137)"), GONE, code="0:9", began="12 0"),
}
GOING = {
    "runs": Case("RUNNING", ("RUNNING", "", None, "not yet"), GONE, began="12 0"),
    "runs again": Case("RUNNING", ("RUNNING", "", None, "not yet"), GONE, began="12 1", ends=(STOPPED,)),
    "waits again": Case("PENDING", ("PENDING", "", None, "not yet"), GONE, began="12 0", ends=(STOPPED,)),
    "runs, submitted again by hand": Case(
        "RUNNING", ("RUNNING", "", None, "not yet"), GONE, began="12 0", ends=(ended("failure", 1, job="11"),)
    ),
}


def run_folder(root: Path, case: Case) -> Path:
    folder = root / "run"
    records.record([Submitted(folder, "12")])
    for each in case.ends:
        (folder / records.BEGAN).write_text(f"{each.job} {each.restarts}\n")
        end.note(folder, each)
    if case.began:
        (folder / records.BEGAN).write_text(f"{case.began}\n")
    return folder


def seen(folder: Path) -> Seen:
    ((run, state),) = jobs.states(records.required(folder))
    row, (result,) = status.row(run, state), results([folder])
    return row["state"], row["why"], row["exit code"], result["ended"]


def results(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the rows of `ddl results`."""
    runs = tables.runs(folders)
    return tables.results(runs, status.ends(runs))


def shown(case: Case) -> str:
    restarts = case.began.split()[1] if case.began else "0"
    return fake_slurm.shown("12", case.state, case.reason, case.code, int(restarts))


def account(case: Case) -> str:
    state = "CANCELLED by 0" if case.state == "CANCELLED" else case.state
    return f"12|{state}|{case.code}|00:00:05|01:00:00|n1\n12.batch|FAILED|9:0|00:00:05||n1"


@pytest.mark.parametrize("name", [*CASES, *GOING])
def test_a_job_that_slurm_knows(name: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    case = {**CASES, **GOING}[name]
    slurm.shows(shown(case))
    assert seen(run_folder(tmp_path, case)) == case.seen


@pytest.mark.parametrize("name", [*CASES, *GOING])
def test_a_job_that_accounting_knows(name: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    case = {**CASES, **GOING}[name]
    slurm.accounts(account(case))
    assert seen(run_folder(tmp_path, case)) == case.seen


@pytest.mark.parametrize("name", [*CASES, *GOING])
def test_a_job_that_all_have_forgotten(name: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    case = {**CASES, **GOING}[name]
    assert seen(run_folder(tmp_path, case)) == case.unseen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("known", ["shows", "accounts"])
def test_an_end_that_was_seen_once_is_kept(name: str, known: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    case = CASES[name]
    folder = run_folder(tmp_path, case)
    say: Callable[[str | None], None] = getattr(slurm, known)
    say(shown(case) if known == "shows" else account(case))
    jobs.states(records.required(folder))
    say(None)
    assert seen(folder) == case.seen


def test_what_was_seen_of_an_earlier_attempt_is_not_of_this_one(slurm: FakeSlurm, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, CASES["node lost"])
    slurm.shows(shown(CASES["node lost"]))
    assert seen(folder)[0] == "NODE_FAIL"
    slurm.shows(None)
    (folder / records.BEGAN).write_text("12 1\n")
    assert seen(folder) == GONE
    end.note(folder, ended("finished", 0, restarts=1))
    assert seen(folder) == ("COMPLETED", "finished", 0, "finished")
    slurm.shows(shown(GOING["runs"]))
    assert seen(folder)[0] == "RUNNING"
    assert not (folder / records.STATE).exists()


def test_where_there_is_no_slurm_results_say_what_the_folder_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = run_folder(tmp_path, CASES["module"])
    assert results([folder])[0]["ended"] == "preparation (exit code 127)"
    (folder / records.BEGAN).write_text("12 1\n")
    (folder / "summary.json").unlink()
    assert results([folder])[0]["ended"] == "not yet"
    with pytest.raises(UserError, match="no scontrol on PATH"):
        jobs.states(records.required(folder))


def test_files_that_are_only_half_written_are_passed_over(slurm: FakeSlurm, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, CASES["failed"])
    for name in ("summary.json", "config.json", "state.json", "progress.json"):
        (folder / name).write_text('{"ended": "leng')
    with (folder / records.ATTEMPTS).open("a") as file:
        file.write('{"time": 1, "jo')
    assert seen(folder) == ("FAILED", "failure", 1, "failure (exit code 1)")
    assert records.total_steps(folder) is None


ACCOUNTS = """\
12_4|COMPLETED|0:0|00:00:05|01:00:00|n1
12_4.batch|FAILED|9:0|00:00:05||n1
12_5|CANCELLED by 1000|0:15|1-00:00:05|UNLIMITED|n1
12_[0-3%2]|PENDING|0:0|00:00:00|01:00:00|None assigned
12_[7,9]|PENDING|0:0|00:00:00|Partition_Limit|None assigned
sacct: a warning | of | some | kind | or | other
13+1|NODE_FAIL|0:0|00:00:05|01:00:00|n[1-2]
14|OUT_OF_ME+|0:125|00:00:05|01:00:00|n1
15|FAILED|1:0|00:00:05|01:00:00|n1|a column that was not requested
old 16|FAILED|1:0|00:00:05|01:00:00|n1
"""


def test_what_accounting_writes() -> None:
    found = [(s.id, s.task, s.state, s.exit_code, s.nodes) for s in control.accounts(ACCOUNTS)]
    assert found == [
        ("12", "4", "COMPLETED", 0, "n1"),
        ("12", "5", "CANCELLED", 143, "n1"),
        ("12", "0-3%2", "PENDING", 0, ""),
        ("12", "7,9", "PENDING", 0, ""),
        ("13", None, "NODE_FAIL", 0, "n[1-2]"),
        ("14", None, "OUT_OF_ME", 253, "n1"),
    ]


def test_each_task_of_an_array_is_found_in_accounting(slurm: FakeSlurm, tmp_path: Path) -> None:
    records.record([Submitted(tmp_path / "a" / task, "12", task) for task in ("0", "3", "4", "5", "6", "9")])
    slurm.accounts(ACCOUNTS)
    states = [state.state for _, state in jobs.states(records.required(tmp_path / "a"))]
    assert states == ["PENDING", "PENDING", "COMPLETED", "CANCELLED", "FORGOTTEN", "PENDING"]


def test_files_among_folders_are_passed_over(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, CASES["module"])
    (tmp_path / "job.sh").write_text("")
    assert len(results([folder, tmp_path / "job.sh"])) == 1
    with pytest.raises(UserError, match=r"job\.sh: no such folder"):
        results([tmp_path / "job.sh"])
