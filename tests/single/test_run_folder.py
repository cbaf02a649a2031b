"""New run folders: each run gets its own, and a refused run leaves none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.runs import folder
from hvd_train.errors import UserError
from tests.integration.ddl import ROOT

NOW = "20260101-000000"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.time, "strftime", lambda _: NOW)
    return tmp_path


def test_runs_that_begin_in_one_second_get_a_folder_each(here: Path) -> None:
    runs = here / "runs"
    assert folder.free_run_folder("m") == runs / f"m-{NOW}"
    assert not runs.exists(), "a name is not taken by asking for it"
    assert [folder.claim_run_folder("m").name for _ in range(3)] == [f"m-{NOW}", f"m-{NOW}-2", f"m-{NOW}-3"]
    assert folder.free_run_folder("m") == runs / f"m-{NOW}-4"
    assert folder.claim_run_folder("x") == runs / f"x-{NOW}"


CLAIM = """\
import sys
from pathlib import Path
from cli.runs.folder import claim_run_folder, make_folder
folder = claim_run_folder("m") if sys.argv[1] == "claim" else make_folder(Path(sys.argv[1]))
print(folder, flush=True)
sys.stdin.readline()
if sys.argv[2] == "write":
    (folder / "x").write_text("")
"""


def process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    pipe, command = subprocess.PIPE, [sys.executable, "-c", CLAIM, *arguments]
    return subprocess.Popen(command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, stdin=pipe, stdout=pipe, text=True)


def test_a_refused_run_removes_what_it_made_and_nothing_else(here: Path) -> None:
    refused, going = process("claim", "", cwd=here), process("claim", "write", cwd=here)
    folders = [Path(p.stdout.readline().strip()) for p in (refused, going) if p.stdout]
    assert folders[0] != folders[1]
    refused.communicate("\n")
    assert not folders[0].exists()
    assert folders[1].is_dir()
    going.communicate("\n")
    assert (folders[1] / "x").exists()


def test_folders_above_an_output_go_with_it(here: Path) -> None:
    (here / "old").mkdir()
    process("old/a/b", "", cwd=here).communicate("\n")
    assert (here / "old").is_dir()
    assert not (here / "old" / "a").exists()


def test_an_output_that_exists_or_cannot_be_made_is_refused(here: Path) -> None:
    (here / "out").mkdir()
    (here / "file").write_text("")
    (here / "nowhere").symlink_to("gone")
    for dry in (False, True):
        with pytest.raises(UserError, match=r"--output: out exists; give another folder, or wait"):
            folder.new_run_folder("m", Path("out"), dry=dry, otherwise="wait")
    with pytest.raises(UserError, match=r"--output: nowhere exists"):
        folder.new_run_folder("m", Path("nowhere"), dry=False, otherwise="wait")
    with pytest.raises(UserError, match=r"file/out: cannot make this run folder \(File exists\); give another"):
        folder.make_folder(Path("file/out"))
    (here / "runs").write_text("")
    with pytest.raises(UserError, match=r"runs/m-20260101-000000: cannot make this run folder"):
        folder.claim_run_folder("m")
    assert sorted(path.name for path in here.iterdir()) == ["file", "nowhere", "out", "runs"]


def test_the_newest_run_is_the_last_that_wrote_something(here: Path) -> None:
    names = [
        "m-20260101-000000",
        "m-20260101-000000-2",
        "m-20260101-000000-10",
        "m-20260102-000000",
        "m-x-20270101-000000",
    ]
    for name in names:
        (here / "runs" / name).mkdir(parents=True)
    assert folder.newest_run("m") is None
    for name in names[:3]:
        (here / "runs" / name / "config.json").write_text("{}")
    newest = folder.newest_run("m")
    assert newest is not None
    assert newest.name == "m-20260101-000000-10"
