"""`ddl data show`: who has which samples, as a table and a picture."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.collections import PolyCollection

from cli.data import plots
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


def test_the_table_has_what_each_worker_is_dealt_and_the_picture_is_there(folder: Path) -> None:
    done = ddl("data", "show", "model.yaml", "data.partition={name: weighted, weights: [1, 3]}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.yaml: weighted (weights: [1, 3]), np=2\n")
    first, second, all_of_them = cells(done.stdout)
    assert [first[:3], second[:3]] == [["0", "6", "25.0%"], ["1", "18", "75.0%"]]
    assert all_of_them == ["all", "24", "100.0%", "12", "8", "4"]
    assert [int(a) + int(b) for a, b in zip(first[3:], second[3:], strict=True)] == [12, 8, 4]
    assert done.stdout.endswith("data-model.png written\n")
    assert min(png_size(folder / "data-model.png")) > 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shwo", "model.yaml"], "data: no 'shwo'; did you mean 'show'?"),
        (["show", "modle.yaml"], "modle.yaml: no such file; did you mean 'model.yaml'?"),
        (["show", "model.yaml", "--np", "0"], "--np: expected at least 1 rank, got 0"),
        (["show", "model.yaml", "--output", "no/x.png"], "--output: 'no/x.png' cannot be written; expected a name such as"),
        (["show", "model.yaml", "--output", "x.pdf"], "--output: 'x.pdf' cannot be written; expected a name such as"),
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
    assert done.stderr == "ddl: data show draws with matplotlib, which is not installed: pip install 'ddl[bench]'\n"


def test_the_command_imports_no_torch() -> None:
    assert heavy(["data", "--help"]) == "[]"


@pytest.mark.parametrize(("workers", "kinds"), [(1, 0), (2, 2), (24, 10), (25, 11), (64, 200)])
def test_bars_have_the_heights_of_the_histograms(workers: int, kinds: int) -> None:
    histograms = [{c: 1 + (c + w) % 3 for c in range(kinds)} or {plots.NO_CLASS: 5 + w} for w in range(workers)]
    figure = plots.shares("title", histograms)
    (axes, *key) = figure.axes
    (bars,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    heights = dict.fromkeys(range(workers), 0.0)
    for path in bars.get_paths():
        low, high = path.get_extents().intervaly
        worker = round(path.get_extents().intervalx.mean())
        assert low == heights[worker]
        heights[worker] = high
    assert heights == {w: sum(h.values()) for w, h in enumerate(histograms)}
    assert axes.get_title() == "title"
    assert len({tuple(colour) for colour in bars.get_facecolors()}) == max(kinds, 1)  # type: ignore[attr-defined]
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > workers - 1
    assert (axes.get_legend() is not None) == (1 <= kinds <= 10)
    assert bool(key) == (kinds > 10)
