"""Trials of a search as jobs of SLURM, with fake commands of SLURM."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.launch.entrypoint import YamlFile
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import control, end, submit
from cli.slurm.control import JobStatus
from cli.slurm.end import End
from cli.slurm.schema import SlurmProfile
from cli.tune.cause import cause
from cli.tune.runner import Run
from cli.tune.runners import slurm_jobs
from cli.tune.runners.searcher_job import submit_searcher
from cli.tune.runners.slurm_jobs import SlurmJob, SlurmJobs, adopt, fitted
from hvd_train.errors import UserError
from tests.cluster.fake_slurm import FakeSlurm, shown

YAML = "model: linear\ndata: digits\nslurm: {time: 10, nodes: 2, ntasks_per_node: 2, environment: {A: 1}}\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return a fake SLURM that is asked every 20 ms, in a folder with a YAML file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "m.yaml").write_text(YAML)
    monkeypatch.setattr(slurm_jobs, "FILES", 0.01)
    monkeypatch.setattr(slurm_jobs, "QUEUE", 0.02)
    monkeypatch.setattr(slurm_jobs, "RETRY", 0.02)
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def run(number: int = 7, np: int = 4, **more: Any) -> Run:
    return Run(Path("m.yaml").absolute(), ("optimizer.lr=0.1",), np, Path(f"trials/{number:04}").absolute(), **more)


def waits(job: SlurmJob, seconds: float = 5.0) -> int | None:
    """Return the exit code of `job`; None if it has none after `seconds`."""
    by = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < by:
        time.sleep(0.002)
    return job.poll()


def script(folder: Path) -> list[str]:
    return (folder / "job.sh").read_text().splitlines()


def ended(folder: Path, *values: Any) -> None:
    """Write the end of the first attempt of job 4711 as its script does."""
    (folder / records.BEGAN).write_text("4711 0\n")
    end.note(folder, End("4711", *values, requeues=0, restarts=0))


def test_a_job_has_the_words_ranks_and_gate_of_its_run(slurm: FakeSlurm) -> None:
    work = run(np=6, gated=True)
    job = SlurmJobs({"partition": "gpu", "environment": {"B": "2"}}, ("--engine", "mpi")).start(work)
    assert (job.number, job.poll()) == ("4711", None)
    lines = script(work.folder)
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert asked[1:5] == ["nodes=3", "ntasks-per-node=2", "time=10", "partition=gpu"]
    words = f'run --engine mpi --output "$folder" --resume latest {work.file} optimizer.lr=0.1 &'
    assert lines[-5].endswith(words)
    assert [line for line in lines if line.startswith("export ")] == [
        "export A=1", "export B=2", f"export DDL_GATE={work.folder}/gate.json",
    ]  # fmt: skip
    assert records.recorded(work.folder) == Submitted(work.folder, "4711", None, work.overrides)
    assert asked[0].startswith("job-name=m-0007-")


def test_runs_of_one_search_may_differ_in_their_request(slurm: FakeSlurm) -> None:
    jobs = SlurmJobs({})
    for number, minutes in enumerate((20, 30)):
        work = run(number)
        jobs.start(replace(work, overrides=(f"slurm.time={minutes}", *work.overrides)))
        lines = script(work.folder)
        assert f"#SBATCH --time={minutes}" in lines
        assert lines[-5].endswith(f"{work.file} slurm.time={minutes} optimizer.lr=0.1 &")
        assert not any("DDL_GATE" in line for line in lines)


def test_each_submission_has_a_name_of_its_own(slurm: FakeSlurm) -> None:
    jobs, names = SlurmJobs({}), set()
    for _ in range(3):
        jobs.start(run())
        names.add(script(run().folder)[1])
    assert len(names) == 3


@pytest.mark.parametrize(
    ("nodes", "each", "np", "expected"),
    [
        (None, None, 3, (None, None)),
        (4, None, 8, (4, None)),
        (4, None, 2, (2, None)),
        (2, 2, 4, (2, 2)),
        (2, 2, 8, (4, 2)),
        (2, 4, 4, (1, 4)),
        (None, 4, 8, (2, 4)),
        (2, 4, 3, (1, None)),
        (1, 4, 7, (2, None)),
    ],
)
def test_nodes_follow_the_ranks_of_the_trial(
    nodes: int | None, each: int | None, np: int, expected: tuple[int | None, int | None]
) -> None:
    found = fitted(SlurmProfile(nodes=nodes, ntasks_per_node=each, time=5), np)
    assert ((found.nodes, found.ntasks_per_node), found.time) == (expected, 5)


LOG = """\
ddl: warning: slow network
ddl: the first failure: rank 0 on n1:
the loss became nan at step 2
slurmstepd: error: something
ddl: see /runs/0007
ddl: job 4711: failure, exit code 3
"""
FORGOTTEN = "SLURM has forgotten the job"


@pytest.mark.parametrize(
    ("written", "state", "code", "message"),
    [
        (("finished", 0, False), None, 0, ""),
        (("failure", 3, False), None, 3, "the first failure: rank 0 on n1: the loss became nan at step 2"),
        (("cancelled", 75, False), None, 75, "cancelled"),
        (("failure", 1, False), ("OUT_OF_MEMORY", "0:125"), 1, "out of memory"),
        (("failure", 1, False), ("FAILED", "1:0"), 1, "the first failure: rank 0 on n1: the loss became nan at step 2"),
        (("time limit", 124, False), ("TIMEOUT", "0:0"), 124, "time limit"),
        (("preemption", 75, False), ("FAILED", "75:0"), 75, "preemption"),
        (None, ("NODE_FAIL", "1:0"), 69, "node failure"),
        (None, ("CANCELLED", "0:15"), 143, "cancelled"),
        (None, ("FAILED", "0:9"), 137, "FAILED"),
        (None, None, 1, f"{FORGOTTEN} (never began)"),
        (("preemption", 75, True), None, 1, FORGOTTEN),
    ],
)
def test_how_a_job_ended(
    written: tuple[Any, ...] | None, state: tuple[str, str] | None, code: int, message: str, slurm: FakeSlurm
) -> None:
    slurm.queues("4711|RUNNING|None")
    job = SlurmJobs({}).start(run())
    assert waits(job, 0.1) is None
    (job.folder / "slurm-4711.log").write_text(LOG)
    if written:
        ended(job.folder, *written)
    if state:
        slurm.shows(shown("4711", state[0], code=state[1]))
    slurm.queues(f"4711|{state[0]}|None" if state else "")
    assert (waits(job), job.message()) == (code, message)


@pytest.mark.parametrize("again", [("preemption", 75, True), ("node failure", 69, False), ("requeued", 143, False)])
def test_a_job_that_is_queued_again_has_not_ended(again: tuple[Any, ...], slurm: FakeSlurm) -> None:
    slurm.queues("4711|PENDING|BeginTime")
    job = SlurmJobs({}).start(run())
    ended(job.folder, *again)
    assert waits(job, 0.2) is None


def test_the_end_of_another_job_in_the_same_folder_is_not_that_of_this_one(slurm: FakeSlurm) -> None:
    jobs = SlurmJobs({})
    ended(jobs.start(run()).folder, "finished", 0, False)
    slurm.submits("4712")
    slurm.queues("4712|PENDING|Priority")
    assert waits(jobs.start(run()), 0.2) is None


def test_the_queue_has_states_reasons_and_lines_of_others(slurm: FakeSlurm) -> None:
    slurm.queues("12|RUNNING|None\n13_[0-3]|PENDING|Priority\n14|PENDING|(a|b)")
    assert control.queue() == {"12": JobStatus("12", "RUNNING"), "14": JobStatus("14", "PENDING", "(a|b)")}
    slurm.queues("", named="12\n15")
    assert control.named("x") == "15"


def test_many_polls_of_many_jobs_are_one_query(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_jobs, "QUEUE", 60.0)
    monkeypatch.setattr(slurm_jobs, "FILES", 0.1)
    looks: list[SlurmJob] = []
    monkeypatch.setattr(SlurmJob, "look", lambda job: looks.append(job))
    jobs, started = SlurmJobs({}), []
    for number in range(8):
        slurm.submits(str(10 + number))
        started.append(jobs.start(run(number)))
    slurm.queues("\n".join(f"{10 + number}|RUNNING|None" for number in range(8)))
    by, polls = time.monotonic() + 0.5, 0
    while time.monotonic() < by:
        assert [job.poll() for job in started] == [None] * 8
        polls += 1
    jobs.close()
    assert [call[:6] for call in slurm.calls].count("squeue") == 1
    assert 8 <= len(looks) <= 8 * 6 < polls


def test_a_controller_that_restarts_is_asked_again(slurm: FakeSlurm) -> None:
    job = SlurmJobs({}).start(run())
    slurm.fails("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert waits(job, 0.1) is None
    slurm.queues("4711|COMPLETED|None")
    slurm.shows(shown("4711", "COMPLETED"))
    assert waits(job) == 0


LIMIT = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates policy"
INVALID = "sbatch: error: Batch job submission failed: Invalid partition name specified"


def test_the_first_job_that_slurm_refuses_ends_the_search_and_a_later_one_has_failed(slurm: FakeSlurm) -> None:
    jobs = SlurmJobs({})
    slurm.fails("sbatch", INVALID)
    with pytest.raises(UserError, match=r"SLURM can never run this job: .*Invalid partition name specified"):
        jobs.start(run(0))
    slurm.submits("4711")
    jobs.start(run(1))
    slurm.fails("sbatch", INVALID)
    job = jobs.start(run(2))
    assert job.poll() == 2
    assert "Invalid partition name specified" in job.message()


def test_a_job_above_a_limit_waits_until_there_is_room(slurm: FakeSlurm) -> None:
    jobs = SlurmJobs({})
    slurm.fails("sbatch", LIMIT)
    job, behind = jobs.start(run(0)), jobs.start(run(1))
    assert (waits(job, 0.1), job.number) == (None, None)
    behind.stop()
    assert waits(behind) == 143
    slurm.submits("4711")
    slurm.queues("4711|RUNNING|None")
    assert (waits(job, 0.2), job.number) == (None, "4711")
    assert records.recorded(job.folder) == Submitted(job.folder, "4711", None, run().overrides)


def test_a_try_that_slurm_did_not_answer_is_not_repeated_if_it_succeeded(slurm: FakeSlurm) -> None:
    jobs = SlurmJobs({})
    jobs.start(run(0))
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    slurm.queues("4711|RUNNING|None\n4712|RUNNING|None", named="4712")
    job = jobs.start(run(1))
    assert job.number is None
    slurm.submits("4713")
    assert waits(job, 0.2) is None
    assert (job.number, records.recorded(job.folder)) == ("4712", Submitted(job.folder, "4712", None, run().overrides))


def test_a_job_that_can_never_start_has_failed(slurm: FakeSlurm) -> None:
    slurm.queues("4711|PENDING|PartitionTimeLimit")
    job = SlurmJobs({}).start(run())
    assert waits(job) == 2
    assert job.message().startswith("PartitionTimeLimit: its time limit is longer than the partition allows")
    assert "scancel 4711" in slurm.calls


@pytest.mark.parametrize(
    ("state", "call"), [("RUNNING", "scancel --batch --signal=USR1 4711"), ("PENDING", "scancel 4711")]
)
def test_a_job_is_asked_to_end_for_good(state: str, call: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.queues(f"4711|{state}|None")
    jobs = SlurmJobs({})
    job = jobs.start(run())
    job.stop()
    assert waits(job, 0.1) is None
    assert {line for line in slurm.calls if line.startswith("scancel")} == {call}
    (job.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    slurm.shows(shown("4711", "CANCELLED", code="0:15"))
    slurm.queues("4711|CANCELLED|None")
    assert (waits(job), job.message()) == (75, "cancelled")
    assert not (jobs.start(run()).folder / records.FOR_GOOD).exists(), "the next job may requeue itself"


def test_the_last_requests_are_delivered_when_the_search_closes(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.queues("4711|RUNNING|None")
    jobs = SlurmJobs({})
    jobs.start(run()).kill()
    jobs.close()
    assert "scancel 4711" in slurm.calls


def attached(number: int = 7) -> SlurmJob | None:
    """Return the job that another process finds."""
    return SlurmJobs({}).attach(run(number).folder)


def test_another_process_finds_a_job_by_its_record(slurm: FakeSlurm) -> None:
    slurm.queues("4711|RUNNING|None")
    assert attached() is None
    folder = SlurmJobs({}).start(run()).folder
    job = attached()
    assert job is not None
    assert (job.number, waits(job, 0.1)) == ("4711", None)
    ended(folder, "failure", 3, False)
    assert waits(job) == 3
    again = attached()
    assert again is not None
    assert again.poll() == 3
    assert len([call for call in slurm.calls if call == f"sbatch --parsable {folder}/job.sh"]) == 1


@pytest.mark.parametrize("known", ["queue", "began", "nobody"])
def test_a_job_that_was_submitted_and_not_recorded_is_found(
    known: str, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.control, "submit", dies)
    with pytest.raises(KeyboardInterrupt):
        SlurmJobs({}).start(run())
    (name,) = (line.partition("=")[2] for line in script(run().folder) if "job-name" in line)
    slurm.queues("", named="4711" if known == "queue" else "")
    if known == "began":
        (run().folder / records.BEGAN).write_text("4711 0\n")
    job = attached()
    assert (job and job.number) == (None if known == "nobody" else "4711")
    assert any(f"--name={name}" in call for call in slurm.calls) == (known != "began")
    assert json.loads((run().folder / "job.json").read_text())["job"] == (job and "4711")


def test_a_run_that_a_search_stopped_starts_again(slurm: FakeSlurm) -> None:
    slurm.queues("4711|PENDING|None")
    job = SlurmJobs({}).start(run())
    job.stop()
    assert waits(job, 0.1) is None
    assert attached() is not None, "it has not ended yet"
    slurm.shows(shown("4711", "CANCELLED", code="0:15"))
    slurm.queues("")
    assert attached() is None
    ended(job.folder, "stopped", 75, False)
    assert attached() is None


def test_a_run_goes_on_from_a_copy_of_the_checkpoint_of_another(slurm: FakeSlurm, tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / "other" / "checkpoints" / f"step-0000000{step}").mkdir(parents=True)
        (tmp_path / "other" / "checkpoints" / f"step-0000000{step}" / "manifest.json").write_text("{}")
    folder = SlurmJobs({}).start(run(resume=tmp_path / "other")).folder
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    adopt(tmp_path / "other" / "checkpoints" / "step-00000001", tmp_path / "third")
    assert (tmp_path / "third" / "checkpoints" / "step-00000001" / "manifest.json").read_text() == "{}"
    with pytest.raises(UserError, match="third/checkpoints: no checkpoint to go on from"):
        adopt(tmp_path / "third" / "checkpoints", tmp_path / "fourth")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", None),
        ("rank 0 of 2\nddl: see /runs/1\n", None),
        ("ddl: m.yaml: unknown key\nddl: job 1: failure, exit code 2\n", "m.yaml: unknown key"),
        ("ddl: an earlier attempt\nddl: rank 1 died\nddl: the last one\n", "the last one"),
        ("-----\n ddl: after a launcher\nddl: see /runs/1\n", "after a launcher"),
        ("-----\n\0ddl: after a launcher\nddl: see /runs/1\n", "after a launcher"),
        (LOG, "the first failure: rank 0 on n1: the loss became nan at step 2"),
        (
            "ddl: the first failure: rank 1 on n1:\nTraceback (most recent call last):\n  x\n\nValueError: no\n",
            "the first failure: rank 1 on n1: ValueError: no",
        ),
    ],
)
def test_the_cause_of_a_failure(output: str, expected: str | None) -> None:
    assert cause(output) == expected


def test_the_searcher_is_a_small_job(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "journal.log").write_text("x")
    flags = {"partition": "long", "gpus_per_node": "4", "sbatch": {"exclusive": None}}
    assert submit_searcher(folder, YamlFile(Path("m.yaml")), ("--slurm", "--parallel", "8"), flags) == "4711"
    found = capsys.readouterr()
    assert found.out == "4711\n"
    assert found.err == "ddl: search: job 4711 searches and requeues itself\n"
    lines = script(folder)
    assert [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")] == [
        "job-name=tune-m", "mem=2G", "time=10", "partition=long", "ntasks=1", "signal=B:USR1@120", "requeue",
        "open-mode=append", f"output={folder}/slurm-%j.log",
    ]  # fmt: skip
    assert "export A=1" in lines
    assert lines[-5].endswith('ddl tune --resume "$folder" --slurm --parallel 8 &')
    assert not any("srun" in line for line in lines)
    slurm.fails("sbatch", INVALID)
    with pytest.raises(UserError, match="Invalid partition name specified"):
        submit_searcher(folder, YamlFile(Path("m.yaml")), (), {})
    assert (folder / "journal.log").read_text() == "x"
