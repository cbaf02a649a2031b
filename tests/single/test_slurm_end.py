"""Causes of the ends of jobs, the output of SLURM's commands, and the tables of runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cli.runs import records, tables
from cli.runs.records import Submitted
from cli.slurm import end, follow, jobs, nodes
from cli.slurm.control import JobStatus, parse
from cli.slurm.end import End, cause_of, reason_in_log
from hvd_train.errors import ExitCode, UserError
from hvd_train.rank.submitted import awaits_start

LOG = """\
46 steps on 4 ranks
slurmstepd-n1: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***
slurmstepd-n1: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-01T12:00:00 ***
slurmstepd-n1: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-01T12:00:00 {} ***
"""


def at(text: str) -> float:
    return time.mktime(time.strptime(f"2026-01-01T{text}", "%Y-%m-%dT%H:%M:%S"))


@pytest.mark.parametrize("words", ["TIME LIMIT", "PREEMPTION", "NODE FAILURE", "JOB REQUEUE"])
def test_what_slurm_writes_into_the_log(words: str) -> None:
    log = LOG.format(f"DUE TO {words}")
    assert reason_in_log(log, at("11:00:00")) == words
    assert reason_in_log(log, at("09:00:00")) == "NODE FAILURE", "the first of this attempt"
    assert reason_in_log(log, at("12:00:01")) is None, "all of it is of earlier attempts"


def test_a_job_that_somebody_cancelled() -> None:
    assert reason_in_log(LOG.format("").replace("  ***", " ***"), at("11:00:00")) == ""


CAUSES = [
    (0, None, None, "finished", 0),
    (1, None, None, "failure", 1),
    (3, None, 10, "failure", 3),
    (75, None, 180, "time limit", 75),
    (75, None, 181, "preemption", 75),
    (75, None, None, "preemption", 75),
    (138, None, 500, "preemption", 143),
    (143, None, 5, "time limit", 124),
    (75, "TIME LIMIT", 0, "time limit", 75),
    (143, "TIME LIMIT", 0, "time limit", 124),
    (1, "NODE FAILURE", 500, "node failure", 69),
    (1, "PREEMPTION", 500, "preemption", 143),
    (75, "JOB REQUEUE", 500, "requeued", 75),
    (75, "", 500, "cancelled", 75),
    (1, "", 500, "cancelled", 143),
]


@pytest.mark.parametrize(("code", "words", "left", "cause", "exit_code"), CAUSES)
def test_causes_and_exit_codes(code: int, words: str | None, left: int | None, cause: Any, exit_code: int) -> None:
    assert cause_of(code, words, left, 120) == cause
    assert end.exit_code(code, cause) == exit_code


@pytest.mark.parametrize(("code", "cause"), [(127, "preparation"), (138, "preemption"), (0, "finished")])
def test_the_end_of_a_script_that_never_started_ddl_run(code: int, cause: str) -> None:
    assert cause_of(code, None, None, 120, began=False) == cause
    assert end.exit_code(127, "preparation") == 127


class Slurm:
    """A fake SLURM: a job with one hour left; requeues are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...] = ()) -> None:
        self.requeued: list[str] = []
        monkeypatch.setattr(end.nodes, "lost", lambda: lost)
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setattr(end.control, "requeue", self.requeued.append)
        monkeypatch.setattr(
            end.control, "states", lambda job: (JobStatus(job, "RUNNING", elapsed="00:00:01", limit="01:00:01"),)
        )


def ended(folder: Path, code: int, most: int = 2) -> int:
    return end.main([str(folder), str(code), "--began", "--notice=120", f"--max-requeues={most}"])


def test_requeues_are_counted_in_the_run_folder_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(monkeypatch)
    for _ in range(3):
        (tmp_path / "summary.json").write_text(
            '{"ended": "stopped by a signal"}'
        )  # the ranks of each attempt write this
        assert ended(tmp_path, 75) == 75
    assert slurm.requeued == ["12", "12"]
    assert [attempt["requeues"] for attempt in records.attempts(tmp_path)] == [1, 2, 2]
    summary = records.summary(tmp_path)
    assert summary["ended"] == "stopped by a signal"
    assert summary["slurm"] == {
        "job": "12", "cause": "preemption", "exit_code": 75, "again": False, "requeues": 2, "restarts": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "ended_as"), [(0, "length"), (1, "failure (exit code 1)"), (3, "failure (exit code 3)")]
)
def test_what_is_no_stop_is_not_queued_again(
    code: int, ended_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(monkeypatch)
    (tmp_path / "summary.json").write_text('{"ended": "length"}')
    assert ended(tmp_path, code) == code
    assert slurm.requeued == []
    assert records.summary(tmp_path)["ended"] == ended_as


def test_a_job_that_lost_a_node_is_queued_again_before_slurm_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = Slurm(monkeypatch, lost=("n2", "n3"))
    assert [ended(tmp_path, 1) for _ in range(3)] == [69, 69, 69]
    assert slurm.requeued == ["12", "12"]
    assert {attempt["cause"] for attempt in records.attempts(tmp_path)} == {"node failure"}
    assert "job 12: node failure, exit code 69; SLURM cannot reach n2, n3; requeued" in capsys.readouterr().err
    assert ended(tmp_path, 3) == 3, "a run that says itself why it failed is believed"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("srun: error: Task launch for StepId=1.0 failed on node n2: Communication connection failure\n" * 2, ("n2",)),
        (
            "srun: error: Task launch for StepId=1.0 failed on node n7: Socket timed out on send/recv operation\n",
            ("n7",),
        ),
        ("srun: error: Node failure on c1-4\nsrun: error: Node failure on c2-4\n", ("c1-4", "c2-4")),
        ("srun: error: Task launch for StepId=1.0 failed on node n2: Invalid job credential\n", ()),
        ("srun: error: Application launch failed: Communication connection failure\nsrun: Job step aborted\n", ()),
        ("", ()),
    ],
)
def test_nodes_that_slurm_does_not_reach(words: str, names: tuple[str, ...]) -> None:
    assert nodes.named(words) == names
    assert nodes.lost({"SLURM_JOB_NUM_NODES": "1"}) == ()


def test_a_job_that_was_cancelled_is_not_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(monkeypatch)
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    (tmp_path / "slurm-12.log").write_text(f"slurmstepd-n1: error: *** JOB 12 ON n1 CANCELLED AT {now} ***\n")
    monkeypatch.setattr(end, "_began", lambda: time.time() - 2)
    assert ended(tmp_path, 75) == 75
    assert (slurm.requeued, records.attempts(tmp_path)[0]["cause"]) == ([], "cancelled")


@pytest.mark.parametrize(
    ("code", "cause", "exit_code"), [(75, "stopped", 75), (138, "stopped", 143), (0, "finished", 0), (3, "failure", 3)]
)
def test_a_run_that_a_search_stopped_is_not_queued_again(
    code: int, cause: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(monkeypatch)
    (tmp_path / records.FOR_GOOD).touch()
    assert ended(tmp_path, code) == exit_code
    assert (slurm.requeued, records.attempts(tmp_path)[0]["cause"]) == ([], cause)


def test_a_requeue_that_slurm_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Slurm(monkeypatch)

    def refuse(job: str) -> None:
        raise UserError(f"scontrol: requeue of {job} is disabled")

    monkeypatch.setattr(end.control, "requeue", refuse)
    assert ended(tmp_path, 75) == 75
    assert "the job could not be requeued: scontrol: requeue of 12 is disabled" in capsys.readouterr().err


SHOWN = (
    "JobId=7 ArrayJobId=6 ArrayTaskId=1 JobName=x UserId=root(0) JobState=PD UserId=me(1) GroupId=me(1) MCS_label=N/A "
    "Priority=1 Nice=0 Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:10:00 TimeLimit=1-00:00:00 TimeMin=N/A NodeList=n[1-2] NumNodes=2\n"
    "JobId=6 ArrayJobId=6 ArrayTaskId=2-3%1 JobName=x UserId=me(1) GroupId=me(1) MCS_label=N/A Priority=1 "
    "JobState=PENDING Reason=Resources Dependency=(null) Requeue=1 Restarts=0 ExitCode=0:0 RunTime=00:00:00 "
    "TimeLimit=UNLIMITED NodeList=(null) NumNodes=2\n"
    "JobId=5 JobName=x UserId=me(1) GroupId=me(1) JobState=FAILED Reason=NonZeroExitCode Dependency=(null) "
    "ExitCode=0:9 RunTime=00:00:01 TimeLimit=00:10:00\n"
)


def test_what_scontrol_shows() -> None:
    running, waiting, failed = parse(SHOWN)
    assert running == JobStatus("7", "RUNNING", "", "1", 0, "00:10:00", "1-00:00:00", "n[1-2]", 2)
    assert (running.seconds_left, running.active, running.waiting) == (85800, True, False)
    assert (waiting.task, waiting.reason, waiting.seconds_left, waiting.waiting) == ("2-3%1", "Resources", None, True)
    assert (failed.state, failed.exit_code, failed.active) == ("FAILED", 137, False)


def test_each_task_of_an_array_has_a_state(tmp_path: Path) -> None:
    states = [*parse(SHOWN)][:2]
    of = [jobs.state_of(Submitted(tmp_path / task, "6", task), states).state for task in ("1", "2", "3", "4")]
    assert of == ["RUNNING", "PENDING", "PENDING", jobs.FORGOTTEN]


@pytest.mark.parametrize(
    ("state", "said", "code"),
    [
        ("COMPLETED", None, 0),
        ("FAILED", 3, 3),
        ("FAILED", None, 9),
        ("TIMEOUT", None, ExitCode.TIMEOUT),
        ("NODE_FAIL", None, ExitCode.NODE_LOST),
        ("OUT_OF_MEMORY", 1, 1),
        ("CANCELLED", None, 143),
        (jobs.FORGOTTEN, None, 1),
    ],
)
def test_exit_codes_of_jobs(state: str, said: int | None, code: int, tmp_path: Path) -> None:
    if said is not None:
        end.note(tmp_path, End("1", "failure", said, False, 0, 0))
    assert jobs.exit_code(Submitted(tmp_path, "1"), JobStatus("1", state, exit_code=9)) == code


def test_a_job_that_slurm_forgot_is_known_by_its_folder(tmp_path: Path) -> None:
    run = Submitted(tmp_path, "1")
    assert jobs.state_of(run, ()).state == jobs.FORGOTTEN
    end.note(tmp_path, End("1", "finished", 0, False, 0, 0))
    assert jobs.state_of(run, ()) == JobStatus("1", "COMPLETED")


def test_a_run_may_begin_where_it_was_submitted_until_it_has_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not awaits_start(folder)
    records.record([Submitted(folder, None)])
    assert awaits_start(folder)
    (folder / "checkpoints" / ".step-00000001.draft").mkdir(parents=True)
    assert awaits_start(folder), "half a checkpoint is none"
    (folder / "checkpoints" / "step-00000001").mkdir()
    assert not awaits_start(folder)


def test_a_script_submitted_by_hand_is_known_by_its_log(tmp_path: Path) -> None:
    records.record([Submitted(tmp_path, "9")])
    for number in ("10", "8"):
        (tmp_path / f"slurm-{number}.log").touch()
    assert records.read(tmp_path) == Submitted(tmp_path, "10")
    records.record([Submitted(tmp_path / "2", "9", "2")])
    (tmp_path / "2" / "slurm-11_2.log").touch()
    assert records.read(tmp_path / "2") == Submitted(tmp_path / "2", "11", "2")


def test_lines_are_followed_as_they_come(tmp_path: Path) -> None:
    tail = follow.Tail(tmp_path)
    assert list(tail.lines()) == []
    with (tmp_path / "slurm-1.log").open("a") as log:
        for text, lines in [("rank 0\n46 steps: ", ["rank 0"]), ("4 ranks\nx", ["46 steps: 4 ranks"]), ("y\n", ["xy"])]:
            log.write(text)
            log.flush()
            assert list(tail.lines()) == lines
    (tmp_path / "slurm-2.log").write_text("again\n")
    assert list(tail.lines()) == ["again"]


def results(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the results of a sweep of three runs: one ended, one runs, one waits."""
    for task, rate in enumerate((0.1, 0.01, 0.001)):
        records.record([Submitted(tmp_path / str(task), "6", str(task), (f"optimizer.lr={rate}", "seed=1"))])
    for task, rate in enumerate((0.1, 0.01)):
        whole = {"seed": 1, "model": {"hidden": [3]}, "optimizer": {"name": "SGD", "lr": rate}}
        (tmp_path / str(task) / "config.json").write_text(json.dumps(whole))
    summary = {"eval": {"loss": 0.5, "accuracy": 0.975}, "steps": 46, "seconds": {"a": 1, "b": 0.5}, "ended": "length"}
    (tmp_path / "0" / "summary.json").write_text(json.dumps(summary))
    return tables.results(tables.runs([tmp_path]), {})


def test_results_show_the_fields_in_which_runs_differ(tmp_path: Path) -> None:
    first, second, third = results(tmp_path)
    assert first == {
        "run": str(tmp_path / "0"), "optimizer.lr": 0.1, "test loss": 0.5, "test accuracy": 0.975,
        "steps": 46, "seconds": 1.5, "ended": "length",
    }  # fmt: skip
    assert (second["optimizer.lr"], second["ended"]) == (0.01, "not yet")
    assert (third["optimizer.lr"], third["ended"]) == (0.001, "not yet")
    header, *lines = tables.csv_text([first, second, third]).splitlines()
    assert header == "run,optimizer.lr,test loss,test accuracy,steps,seconds,ended"
    assert lines[1] == f"{tmp_path / '1'},0.01,,,,,not yet"
    assert "0.975" in tables.text([first, second, third]).splitlines()[1]


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here; expected a folder with"):
        tables.runs([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        tables.runs([tmp_path / "x"])
    with pytest.raises(UserError, match="no submitted job in this folder"):
        records.required(tmp_path)
