"""`ddl attack` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bodies import trained
from tests.integration.ddl import ddl, ddl_here


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"))


def test_two_ranks_write_tables_and_pictures(digits: Path, tmp_path: Path) -> None:
    options = ["--method", "pgd,corruptions", "--epsilon", "0.1,0.2", "--steps", "3", "--samples", "128"]
    done = ddl("attack", digits, *options, "--np", "2", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 (clean)" in done.stdout
    assert "gaussian noise" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["attack.json", "corruptions.png", "robustness.png"]
    found = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert found["samples"] == 128
    assert found["attacks"]["epsilon"] == [0.0, 0.1, 0.2]
    assert found["attacks"]["accuracy"]["pgd"][0] == found["corruptions"]["clean"]


def test_json_goes_to_stdout_and_results_to_the_run_folder(digits: Path, tmp_path: Path) -> None:
    done = ddl("attack", digits, "--method", "fgsm", "--epsilon", "0", "--samples", "8", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["attacks"]["accuracy"]) == ["fgsm"]
    (folder,) = digits.glob("attack-*")
    assert (folder / "robustness.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "fgms"], "no method 'fgms'; did you mean 'fgsm'?"),
        (["--epsilon", "0.1,x"], "--epsilon: expected numbers from 0 on, such as 0,0.01,0.1, got '0.1,x'"),
        (["--norm", "l1"], "--norm: no norm 'l1' (choices: l2, linf)"),
    ],
)
def test_bad_words_are_refused(digits: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = ddl_here("attack", digits, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_unknown_split_leaves_no_folder(digits: Path, tmp_path: Path) -> None:
    done = ddl("attack", digits, "--split", "trian", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "--split: no 'trian' in the data; expected test, train" in done.stderr
    assert list(tmp_path.iterdir()) == []
