"""`ddl submit`, `cancel` and `--wait` with fake commands of SLURM."""

from __future__ import annotations

import json
import os
import pty
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.main import app
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import control, follow, jobs, reasons
from cli.slurm.control import JobStatus, environment
from hvd_train.errors import UserError
from tests.cluster.fake_slurm import FakeSlurm, shown

NOW = "20260101-000000"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return a fake SLURM at a fixed time, in a folder with a YAML file and a script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: NOW)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "m.yaml").write_text("model: linear\ndata: digits\n")
    (tmp_path / "train.py").write_text("")
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def ddl(*words: str) -> None:
    app(list(words), standalone_mode=False)


def script(folder: str = f"runs/m-{NOW}") -> str:
    return Path(folder, "job.sh").read_text()


@pytest.mark.parametrize("answer", ["12345", "12345;cluster", "7\nyour job\n12345\n"])
def test_a_greeting_is_no_number(answer: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.submits(answer)
    slurm.shows(shown("12345", "PENDING", "JobHeldUser"))
    ddl("submit", "m.yaml")
    found = capsys.readouterr()
    assert found.out == "12345\n"
    assert "PENDING (JobHeldUser: its user holds it: scontrol release ends the hold)" in found.err
    assert json.loads(Path(f"runs/m-{NOW}/job.json").read_text())["job"] == "12345"
    ddl("status")
    assert "12345" in capsys.readouterr().out


def test_an_answer_without_a_number_is_refused(slurm: FakeSlurm) -> None:
    slurm.submits("no job today")
    with pytest.raises(UserError, match=r"(?s)sbatch printed no job number; it printed: Welcome.*no job today"):
        ddl("submit", "m.yaml")
    assert not list(Path("runs").iterdir())


def test_runs_that_are_submitted_in_one_second_get_a_folder_each_and_a_refused_one_takes_its_own_only(
    slurm: FakeSlurm,
) -> None:
    ddl("submit", "m.yaml")
    ddl("submit", "m.yaml")
    assert "runs/m-20260101-000000-2/slurm-%j.log" in script(f"runs/m-{NOW}-2")
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Invalid partition name specified")
    with pytest.raises(UserError) as caught:
        ddl("submit", "m.yaml")
    assert (
        str(caught.value)
        == "SLURM can never run this job: Batch job submission failed: Invalid partition name specified"
    )
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"m-{NOW}", f"m-{NOW}-2"]
    with pytest.raises(UserError, match=r"--output: runs/.* exists; give another folder, or resume it with: sbatch"):
        ddl("submit", "--output", f"runs/m-{NOW}", "m.yaml")
    assert script()


def test_a_slurm_that_does_not_answer_is_no_refusal_of_the_job(slurm: FakeSlurm) -> None:
    slurm.fails("sbatch", "sbatch: fatal: Could not establish a configuration source")
    with pytest.raises(UserError, match=r"^sbatch: fatal: Could not establish"):
        ddl("submit", "m.yaml")


def test_a_submission_without_an_answer_keeps_its_folder(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS", 0.2)
    slurm.submits_never()
    with pytest.raises(UserError, match=r"sbatch did not answer within 0\.2 s.*The job may be in the queue .*is kept"):
        ddl("submit", "m.yaml")
    assert script()


def test_a_job_that_is_submitted_is_so_whatever_scontrol_says(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.fails("scontrol", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    ddl("submit", "--iface", "ib0", "m.yaml")
    assert capsys.readouterr().out == "4711\n"
    assert "run --iface ib0 --output" in script()
    with pytest.raises(UserError, match="scontrol: slurm_load_jobs error: Unable to contact"):
        ddl("status")


def test_a_wait_outlasts_a_controller_that_restarts(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    two_jobs()
    slurm.fails("scontrol", "Unable to contact slurm controller (connect failure)")
    then = iter([shown("12", "RUNNING"), shown("12", "FAILED", code="3:0"), None])
    original = jobs.states

    def once(submitted: Sequence[Submitted]) -> list[tuple[Submitted, JobStatus]]:
        try:
            return original(submitted)
        finally:
            slurm.shows(next(then))

    monkeypatch.setattr(jobs, "states", once)
    monkeypatch.setattr(follow, "SECONDS", (0.01, 0.01))
    assert follow.follow(Path("runs/12")) == 3


def test_scripts_and_modules_have_run_folders_and_their_own_words(slurm: FakeSlurm) -> None:
    ddl("submit", "--np", "4", "--bind", "core", "train.py", "--lr", "0.1", "--np", "7")
    ddl("submit", "-m", "pkg.train", "-x", "y z")
    assert "#SBATCH --ntasks=4\n" in script(f"runs/train-{NOW}")
    words = f'run --bind core --output "$folder" {Path.cwd()}/train.py -- --lr 0.1 --np 7 &'
    assert words in script(f"runs/train-{NOW}")
    assert "run --output \"$folder\" -m pkg.train -- -x 'y z' &" in script(f"runs/pkg-train-{NOW}")


def test_options_of_ddl_run_are_in_the_script(slurm: FakeSlurm) -> None:
    Path("my.env").write_text("A=1\n")
    ddl("submit", "--launcher", "srun", "--launcher-args", "--mem-bind local", "--env-file", "my.env", "m.yaml")
    options = f"--launcher srun --launcher-args '--mem-bind local' --env-file {Path.cwd()}/my.env"
    assert f'run {options} --output "$folder" --resume latest {Path.cwd()}/m.yaml &' in script()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launcher-args", "'", "m.yaml"], "--launcher-args: "),
        (["--env-file", "none.env", "m.yaml"], "--env-file: none.env cannot be read"),
        (["--bind", "foo", "m.yaml"], "--bind: no binding 'foo'"),
        (["--engine", "foo", "m.yaml"], "--engine: no engine 'foo'"),
        (["--launcher", "local", "m.yaml"], "--launcher: no launcher 'local'"),
        (["--time", "soon", "m.yaml"], "--time: time: expected minutes, H:M:S, D-H, or units such as 1h30m and 2d"),
        (["--sbatch", "output=x", "m.yaml"], "--sbatch output: ddl submit sets this option itself; the log is slurm-JOB.log"),
        (["-x", "MY_TOKEN=abc", "m.yaml"], "--env: MY_TOKEN looks like a secret"),
        (["-x", "UNSET_HERE", "m.yaml"], "--env: UNSET_HERE is not set in this shell"),
        (["m.yaml", "slurm.profile=labb"], "'slurm.profile=labb': slurm.profile: no profile 'labb' in"),
        (["--profile", "labb", "m.yaml"], "--profile: no profile 'labb' in"),
        (["--sweep", "a=1", "train.py"], "--sweep sets fields of a YAML file"),
        (["none.py"], "none.py: no such file; expected a Python script"),
        ([], "submit: expected a YAML file (.yaml), a Python script (.py) or -m MODULE"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(words: list[str], said: str, slurm: FakeSlurm) -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(UserError) as caught:
        ddl("submit", *words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "abc" not in str(caught.value)
    assert [path for path in sorted(Path().glob("**/*")) if path.name == "job.sh"] == []
    assert set(before) | {Path("runs")} >= set(Path().iterdir())


def test_nobody_else_reads_the_script(slurm: FakeSlurm) -> None:
    old = os.umask(0)
    try:
        ddl("submit", "-x", "NOTE=private matter", "m.yaml")
    finally:
        os.umask(old)
    assert "export NOTE='private matter'\n" in script()
    assert stat.S_IMODE(Path(f"runs/m-{NOW}/job.sh").stat().st_mode) == 0o700


OF_A_JOB = {
    "SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "x", "SLURM_MEM_PER_NODE": "1", "SLURMD_NODENAME": "n1", "SLURM_NTASKS": "1",
    "PMIX_RANK": "0", "PMI_RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "SLURM_EXPORT_ENV": "NONE",
}  # fmt: skip
OF_THE_USER = {
    "SLURM_CONF": "/c", "SLURM_CLUSTERS": "a", "SLURM_TIME_FORMAT": "x", "SBATCH_ACCOUNT": "me", "PMIX_MCA_gds": "hash",
    "PYTHONPATH": "/p", "OMPI_MCA_btl": "tcp", "PATH": "/bin",
}  # fmt: skip


def test_a_job_inside_a_job_gets_settings_of_slurm_and_not_those_of_the_outer_job() -> None:
    assert environment({**OF_A_JOB, **OF_THE_USER}) == OF_THE_USER
    outside = {"SLURM_MPI_TYPE": "pmix", **OF_THE_USER}
    assert environment(outside) == outside


def test_what_the_script_says_goes_before_variables_of_sbatch() -> None:
    variables = {"SBATCH_PARTITION": "a", "SBATCH_TIMELIMIT": "1", "SBATCH_OUTPUT": "x", "SBATCH_NO_REQUEUE": "1"}
    told = "#SBATCH --partition=b\n#SBATCH --time=2\n#SBATCH --output=y\n#SBATCH --requeue\n"
    assert environment({**variables, "SBATCH_QOS": "low"}, told) == {"SBATCH_QOS": "low"}
    assert environment(variables, "") == variables


def test_sbatch_gets_that_environment(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "x", "SBATCH_ACCOUNT": "me", "SBATCH_QOS": "a"}.items():
        monkeypatch.setenv(name, value)
    ddl("submit", "--qos", "b", "m.yaml")
    found = slurm.environment
    assert found["SBATCH_ACCOUNT"] == "me"
    assert not {"SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_QOS"} & set(found)


def test_variables_that_do_not_go_on_are_named(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PYTHONPATH", "HF_TOKEN"):
        monkeypatch.setenv(name, "x")
    ddl("submit", "-x", "HF_TOKEN", "m.yaml")
    assert "does not get" not in capsys.readouterr().err
    ddl("submit", "-x", "HF_TOKEN", "--sbatch", "export=PYTHONPATH", "m.yaml")
    assert "ddl: warning: export=PYTHONPATH: the job does not get HF_TOKEN of this shell" in capsys.readouterr().err
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    ddl("submit", "-x", "HF_TOKEN", "m.yaml")
    assert "export=NONE: the job does not get HF_TOKEN, PYTHONPATH of this shell" in capsys.readouterr().err


def two_jobs() -> None:
    for job in ("12", "13"):
        records.record([Submitted(Path("runs", job), job)])


def test_one_job_is_cancelled_without_a_question(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    two_jobs()
    slurm.shows(shown("12", "RUNNING"))
    ddl("cancel", "runs/12")
    assert (capsys.readouterr().out, slurm.calls) == ("12: cancelled\n", ["scancel 12"])
    slurm.shows(shown("12", "CANCELLED"))
    ddl("cancel", "runs/12")
    assert capsys.readouterr().out == "nothing to cancel: every job has ended\n"


def test_several_jobs_are_cancelled_by_those_who_say_so(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_jobs()
    slurm.shows(shown("12", "RUNNING"))
    with pytest.raises(UserError) as caught:
        ddl("cancel", "runs")
    assert str(caught.value).splitlines() == [
        "runs has 2 jobs that have not ended:", "  12: runs/12", "  13: runs/13",
        "to cancel all of them, give --yes; to cancel one, give its run folder",
    ]  # fmt: skip
    assert slurm.calls == []
    ddl("cancel", "runs", "--yes")
    assert slurm.calls == ["scancel 12 13"]
    assert capsys.readouterr().out == "12: cancelled\n13: cancelled\n"
    leader, follower = pty.openpty()
    with os.fdopen(follower) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(leader, b"y\n")
        ddl("cancel", "runs")
    os.close(leader)
    assert slurm.calls == ["scancel 12 13"] * 2
    assert "Cancel all of them? [y/N]" in capsys.readouterr().out


def test_an_array_is_one_job(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    records.record([Submitted(Path("runs", task), "12", task) for task in ("0", "1")])
    slurm.accounts("12_[0-1]|PENDING|0:0|00:00:00|01:00:00|None assigned")
    ddl("cancel", "runs")
    assert slurm.calls == ["scancel 12_0 12_1"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("DependencyNeverSatisfied", 1), ("PartitionTimeLimit", 2), ("PartitionConfig", 2), ("BadConstraints", 2),
        ("QOSMaxCpuPerJobLimit", 2), ("AssocMaxWallDurationPerJobLimit", 2), ("QOSMinGRES", 2), ("InvalidQOS", 2),
    ],
)  # fmt: skip
def test_a_wait_for_what_can_never_start_ends(
    reason: str, code: int, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    two_jobs()
    slurm.shows(shown("12", "PENDING", reason))
    assert follow.follow(Path("runs/12")) == code
    found = capsys.readouterr()
    assert found.err.count(f"ddl: job 12 waits ({reason}): ") == 1
    assert "it can never start; remove it from the queue with: ddl cancel runs/12" in found.err


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("JobHeldUser", "scontrol release"),
        ("JobHeldAdmin", "administrator"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", "down, drained or reserved"),
        ("launch failed requeued held", "scontrol release"),
    ],
)
def test_reasons_that_may_pass_are_said_and_waited_for(reason: str, text: str) -> None:
    found = reasons.meaning(reason)
    assert found is not None
    assert text in found.text
    assert found.exit_code is None


@pytest.mark.parametrize(
    "reason", ["", "Priority", "Resources", "AssocMaxJobsLimit", "QOSMaxJobsPerUserLimit", "Dependency"]
)
def test_reasons_that_pass_need_no_words(reason: str) -> None:
    assert reasons.meaning(reason) is None


def test_a_wait_knows_how_many_steps_there_are_after_a_requeue(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"first_step": 2000, "total_steps": 4600}')
    old = '{"kind": "train", "step": 1}\n' * 10_000
    (tmp_path / "metrics.jsonl").write_text(old + '{"kind": "train", "step": 2300}\n{"kind": "tr')
    assert (records.last_step(tmp_path), records.total_steps(tmp_path)) == (2300, 4600)
    assert (records.last_step(tmp_path / "none"), records.total_steps(tmp_path / "none")) == (None, None)
