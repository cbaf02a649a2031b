"""`ddl export` as a user types it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.bodies import trained
from tests.integration.ddl import ddl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"))


def test_export_is_written_beside_its_card(run: Path, tmp_path: Path) -> None:
    done = ddl(
        "export", run, "--to", "safetensors", "--output", "out", "--licence", "CC0-1.0", "--np", "2",
        "--latency-seconds", "0.01", "--max-loss", "0.5", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *table, blank, verdict = done.stdout.splitlines()
    assert table[0].split() == ["original", "fp32"]
    assert not blank
    assert verdict.endswith("equal in accuracy: kept fp32")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "card.json", "card.md", "config.json", "data.json"}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["licence"], card["evaluation"]["kept"]) == ("CC0-1.0", "fp32")


def test_export_that_loses_too_much_leaves_nothing(run: Path, tmp_path: Path) -> None:
    before = sorted(run.rglob("*"))
    done = ddl(
        "export", run, "--to", "safetensors", "--prune", "0.99", "--max-loss", "0.5", "--json",
        "--latency-seconds", "0.01", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["kept"] is None
    assert found["verdict"].endswith("more than --max-loss 0.5: nothing is written")
    assert found["zeros"] == pytest.approx(0.99 * (64 * 32 + 32 * 10), abs=1)
    assert (list(tmp_path.iterdir()), sorted(run.rglob("*"))) == ([], before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onxx"), "--to: no format 'onxx'; did you mean 'onnx'?"),
        (("--to", "onnx", "--prune", "80"), "--prune: expected a share of the weights from 0 to below 1"),
        (
            ("--to", "executorch"),
            "executorch is not installed; in a checkout of ddl, run pip install -e '.[executorch]'",
        ),
    ],
    ids=["format", "sparsity", "extra"],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], said: str, run: Path, tmp_path: Path) -> None:
    if "executorch" in words and importlib.util.find_spec("executorch"):
        pytest.skip("executorch is installed")
    done = ddl("export", run, *words, "--output", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
