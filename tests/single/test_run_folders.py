"""The folder that a run writes to, and the folder that a run or a restart resumes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.arguments.configuration import load
from cli.follow.restarts import Origin
from cli.launch.target import Target, of_yaml
from hvd_train.errors import UserError
from hvd_train.rank.submitted import RECORD, awaits_start, has_checkpoint

YAML = "model: linear\ndata: digits\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_folder(path: Path, *steps: int) -> Path:
    path.mkdir(parents=True)
    for step in steps:
        checkpoint(path / "checkpoints", step)
    return path


def checkpoint(parent: Path, step: int, content: str = "{}") -> Path:
    folder = parent / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(content)
    return folder


def target(here: Path, name: str, resume: str, output: Path | None = None) -> Target:
    file = here / f"{name}.yaml"
    file.write_text(YAML)
    return of_yaml(file, load(file, []), output=output, resume=resume, world_size=1, engine="single")


def source(told: Target) -> str:
    return str(json.loads(told.program[-1])["launch"]["resume"])


@pytest.mark.parametrize("name", ["B", "B-large", "B.v2", "B[1]", "B+"])
def test_latest_is_the_newest_run_of_exactly_this_file(name: str, here: Path) -> None:
    others = (
        "B-large-20990101-000000",
        "B-20990101-000000.lost-1",
        "B-20990101-00000",
        "B-x-20990101-000000",
        "B.v2x-20990101-000000",
    )
    for folder in (f"{name}-20260101-000000", f"{name}-20260102-000000", *others):
        run_folder(here / "runs" / folder, 1) if not (here / "runs" / folder).exists() else None
    (here / "runs" / f"{name}-20990909-000000").write_text("a file")
    expected = "B-large-20990101-000000" if name == "B-large" else f"{name}-20260102-000000"
    told = target(here, name, "latest")
    assert told.folder == here / "runs" / expected
    assert source(told) == str(told.folder)


def test_latest_never_takes_the_run_of_another_file(here: Path) -> None:
    run_folder(here / "runs" / "B-large-20260101-000000", 1)
    with pytest.raises(UserError, match=r"--resume latest: no run of B\.yaml in runs/"):
        target(here, "B", "latest")


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/abandoned-2"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_checkpoint_says_which_run_it_is_of(
    inside: str, relative: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(here / "checkpoints" / "R", 10)
    step = checkpoint(run / inside, 5)
    if relative:
        monkeypatch.chdir(step.parent)
    told = target(here, "B", step.name if relative else str(step))
    assert told.folder == run
    assert source(told) == str(step)
    assert target(here, "B", str(run)).folder == run


def test_a_checkpoint_without_a_run_needs_an_output(here: Path) -> None:
    step = checkpoint(here / "copied", 5)
    with pytest.raises(UserError, match=r"is not in a run folder; give the run folder with --output"):
        target(here, "B", str(step))
    assert target(here, "B", str(step), here / "new").folder == here / "new"


def test_a_checkpoint_counts_once_its_manifest_is_written(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / RECORD).write_text("{}")
    draft = run / "checkpoints" / ".step-00000002.draft"
    draft.mkdir(parents=True)
    (draft / "manifest.json").write_text("")
    assert awaits_start(run)
    (draft / "manifest.json").write_text("{}")
    assert has_checkpoint(run)
    assert not awaits_start(run)


def test_a_restart_goes_on_from_where_the_job_began_until_it_has_saved(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 40, 50, 60)
    chosen = str(run / "checkpoints" / "step-00000040")
    origin = Origin.of(run, chosen)
    assert origin.source() == chosen
    for step in (50, 60):  # the job began and moved the other branch away
        folder = run / "checkpoints" / f"step-{step:08d}"
        (run / "checkpoints" / "abandoned-1").mkdir(exist_ok=True)
        folder.rename(run / "checkpoints" / "abandoned-1" / folder.name)
    assert origin.source() == str(run)
    checkpoint(run / "checkpoints", 45)
    assert origin.source() == str(run)


def test_a_restart_elsewhere_goes_on_from_the_other_run_until_it_has_saved(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path / "first", 10), tmp_path / "second"
    origin = Origin.of(second, str(first))
    assert origin.source() == str(first)
    second.mkdir()
    assert origin.source() == str(first)
    assert second.is_dir()
    checkpoint(second / "checkpoints", 11)
    assert origin.source() == str(second)


def test_a_restart_of_a_job_that_began_from_nothing_puts_a_folder_without_checkpoints_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for resume in (None, "latest"):
        origin = Origin.of(run, resume)
        assert origin.source() is None
        run.mkdir()
        assert origin.source() is None
        assert not run.exists(), "claimed, and nothing in it"
        run.mkdir()
        (run / "config.json").write_text("{}")
        assert origin.source() is None
        assert not run.exists()
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["run.lost-1", "run.lost-2"]
