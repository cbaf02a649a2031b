"""`ddl explain` from outside: its files and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bodies import trained
from tests.integration.ddl import ddl, ddl_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"), train={"steps": 20, "eval_every": 20})


def test_two_ranks_write_a_report_and_a_picture(run: Path, tmp_path: Path) -> None:
    done = ddl("explain", run, "--samples", "3", "--np", "2", "--output", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"explain.png", "maps.npz", "report.json"}
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(found["samples"]) == 3
    assert all(sample["completeness_error"] <= 0.01 for sample in found["samples"])
    assert found["verdict"][0].startswith("completeness: the values add up to the change of the score on all samples")
    assert f"{tmp_path / 'out'} written" in done.stderr


def test_a_model_without_attention_is_refused_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    done = ddl("explain", run, "--method", "attention", "--np", "1", "--output", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "calls neither scaled_dot_product_attention nor nn.MultiheadAttention" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "0"], "Invalid value for '--samples'"),
        (["--method", "lime"], "--method: no method 'lime'"),
        (["--baseline", "white"], "--baseline: no baseline 'white'"),
    ],
    ids=["samples", "method", "baseline"],
)
def test_wrong_options_are_refused(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = ddl_here("explain", run, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_captum_names_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.output.packages.find_spec", lambda name: None if name == "captum" else name)
    done = ddl_here("explain", run, cwd=tmp_path)
    assert done.returncode == 2
    assert "explain needs captum, which is not installed" in done.stderr
    assert "'.[explain]'" in done.stderr
