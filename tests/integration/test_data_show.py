"""`ddl data show` as a user types it: tables, JSON and a picture."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.ddl import ROOT, ddl, heavy

LABELS = [0] * 12 + [1] * 8 + [2] * 4
MODEL = """\
model: {name: mlp, hidden: [4]}
data: {name: npz, path: samples.npz, test_fraction: 0.0, batch_size: 4, partition: PARTITION}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import numpy as np

    np.savez(tmp_path / "samples.npz", x=np.zeros((24, 2), dtype=np.float32), y=np.array(LABELS))
    (tmp_path / "model.yaml").write_text(MODEL.replace("PARTITION", "random"))
    return tmp_path


def cells(printed: str) -> list[list[str]]:
    """The rows of a table, without its frame."""
    return [[word.strip() for word in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_tables_and_a_picture_show_samples_workers_and_rates(folder: Path) -> None:
    partition = "data.partition={name: weighted, weights: [1, 3]}"
    done = ddl("data", "show", "model.yaml", partition, "--workers", "0", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.yaml: weighted (weights: [1, 3]), np=2\n")
    first, second, all_of_them, *fields, rates = cells(done.stdout)
    assert [first[:3], second[:3]] == [["0", "6", "25.0%"], ["1", "18", "75.0%"]]
    assert all_of_them == ["all", "24", "100.0%", "12", "8", "4"]
    assert [int(a) + int(b) for a, b in zip(first[3:], second[3:], strict=True)] == [12, 8, 4]
    assert [field[:2] for field in fields] == [
        ["input", "float32"], ["target", "int64"], ["input[0]", "number"], ["input[1]", "number"],
    ]  # fmt: skip
    assert rates[0] == "0"
    assert int(rates[1].replace(",", "")) > 0
    assert done.stdout.endswith("data-model.png written\n")
    assert min(png_size(folder / "data-model.png")) > 500


def test_json_has_what_the_tables_have(folder: Path) -> None:
    done = ddl("data", "show", "model.yaml", "--workers", "0", "--json", "--output", "x.png", cwd=folder)
    found = json.loads(done.stdout)
    assert (found["samples"], found["read"], found["bytes_per_sample"]) == ({"train": 24, "test": 0}, 24, 16)
    assert [field["shape"] for field in found["fields"]] == [[2], []]
    assert [rate["workers"] for rate in found["rates"]] == [0]
    assert done.stderr.endswith("x.png written\n")
    assert min(png_size(folder / "x.png")) > 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shwo", "model.yaml"], "data: no command 'shwo'; did you mean 'show'?"),
        (["show", "modle.yaml"], "modle.yaml: no such file; did you mean 'model.yaml'?"),
        (["show", "model.yaml", "--workers", "1;2"], "--workers: expected numbers such as 0,1,2,4, got '1;2'"),
        (["show", "model.yaml", "--np", "0"], "--np: expected at least 1 rank, got 0"),
        (["show", "model.yaml", "--output", "no/x.png"], "--output: 'no/x.png' cannot be written; expected a file name such as"),
        (["show", "model.yaml", "--output", "x.pdf"], "--output: 'x.pdf' cannot be written; expected a file name such as"),
        (
            ["show", "model.yaml", "data.partition={name: dirichlet, alpha: 0}"],
            "command line: 'data.partition={name: dirichlet, alpha: 0}': data.partition.alpha: expected greater than 0, got 0",
        ),
        (
            ["show", "model.yaml", "data.partition=by_label", "--np", "13"],
            "data.partition: by_label cuts 24 samples into 26 blocks, 2 for each of 13 workers; use fewer shards or workers",
        ),
    ],
    ids=lambda value: " ".join(value[2:] or value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments: list[str], said: str, folder: Path) -> None:
    done = ddl("data", *arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ddl: {said}")
    assert done.stderr.count("\n") == 1
    assert not list(folder.glob("*.png"))


def test_a_missing_matplotlib_is_one_sentence(folder: Path) -> None:
    hide = "import sys; sys.modules['matplotlib'] = None; sys.argv = ['ddl', *sys.argv[1:]]; from cli.main import main; main()"
    command = [sys.executable, "-c", hide, "data", "show", str(folder / "model.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "ddl: data show needs matplotlib, which is not installed; in a checkout of ddl, run pip install -e '.[bench]'\n"
    )


def test_the_command_imports_no_torch() -> None:
    assert heavy(["data", "--help"]) == "[]"


def test_environments_are_shown_without_a_picture(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("model: actor_critic\ndata: {name: gymnasium, env: FrozenLake-v1}\nagent: ppo\n")
    done = ddl("data", "show", "m.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = dict(cells(done.stdout))
    assert (found["observation"], found["actions"]) == ("16", "one of 4 choices")
    assert found["longest episode"] == "100 steps"
    assert found["random policy"].endswith("in 20 episodes")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.yaml"]
