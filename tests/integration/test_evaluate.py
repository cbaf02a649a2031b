"""`ddl evaluate` from outside: equal on several ranks, and nothing is left after bad input."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bodies.evaluating import assert_close, measured
from tests.bodies.trained import cartpole, digits
from tests.integration.ddl import ddl
from tests.integration.parts import needs


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    needs("mpirun")
    run = digits(tmp_path, model={"name": "cnn", "channels": [4]}, train={"steps": 20})
    results = {}
    for np in (1, 2):
        output = tmp_path / f"np-{np}"
        done = ddl(
            "evaluate", run, "--np", str(np), "--metrics", "f1,auroc", "--output", output, "--json", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        results[np] = json.loads((output / "evaluate.json").read_text())
        assert json.loads(done.stdout)["metrics"] == results[np]["metrics"]
        assert {"confusion.png", "roc.png", "calibration.png", "worst.png"} <= {path.name for path in output.iterdir()}
    assert results[2]["ranks"] == 2
    assert_close(measured(results[2]), measured(results[1]))
    assert list(results[1]["metrics"]) == ["loss", "accuracy", "f1", "auroc", "calibration_error"]

    done = ddl("evaluate", run, "--split", "dev", cwd=tmp_path)
    assert (done.returncode, "no 'dev' in the data" in done.stderr) == (2, True)
    assert not [path for path in run.iterdir() if "evaluate" in path.name]


def test_two_ranks_play_episodes_and_film_the_first(tmp_path: Path) -> None:
    needs("mpirun")
    run, output, episode = cartpole(tmp_path), tmp_path / "played", tmp_path / "first.mp4"
    words = ("--np", "2", "--episodes", "5", "--render", episode, "--output", output, "--json")
    done = ddl("evaluate", run, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((output / "evaluate.json").read_text())
    assert (result["ranks"], len(result["played"])) == (2, 5)
    assert json.loads(done.stdout)["played"] == result["played"]
    assert {path.name for path in output.iterdir()} == {"evaluate.json", "returns.png"}
    assert f"first.mp4: {result['played'][0]['length'] + 1} pictures written" in done.stderr
    assert episode.stat().st_size > 1000

    before = sorted(tmp_path.rglob("*"))
    done = ddl("evaluate", run, "--data", "env=Acrobot-v1", "--render", tmp_path / "other.gif", cwd=tmp_path)
    assert (done.returncode, "expected (4,)" in done.stderr) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before
