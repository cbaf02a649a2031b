"""`ddl predict` on a run folder, with real files, stdin and stdout."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from hvd_train.rank import internal
from tests.bodies import trained
from tests.integration.ddl import ddl, heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on a table and the table, whose training data are then renamed."""
    made = tmp_path_factory.mktemp("predict")
    trained.table(made)
    (made / "table.csv").rename(made / "new.csv")
    return made


def test_the_run_folder_alone_predicts(folder: Path) -> None:
    done = ddl("predict", "run", "new.csv", "--keep", "bought", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 300
    assert sum(row["class"] == row["bought"] for row in rows) > 270
    json_lines = ddl("predict", "run", "new.csv", "--json", "--top", "2", cwd=folder)
    answers = [json.loads(line) for line in json_lines.stdout.splitlines()]
    assert [answer["class"] for answer in answers] == [row["class"] for row in rows]
    assert all(abs(sum(t["probability"] for t in answer["top"]) - 1) < 1e-6 for answer in answers)


def test_stdin_is_read_and_a_file_is_written_once(folder: Path) -> None:
    argv = internal.argv("cli", "predict", "run", "-", "-o", "out.csv")
    with open(folder / "new.csv", "rb") as table:
        done = subprocess.run(argv, stdin=table, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "ddl: out.csv written: 300 predictions\n")
    again = ddl("predict", "run", "new.csv", "-o", "out.csv", cwd=folder)
    assert again.returncode == 2
    assert "out.csv exists" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "gone.csv"), "gone.csv: no such file or folder"),
        (("nowhere", "new.csv"), "nowhere"),
        (("run", "new.csv", "-o", "a.xlsx"), "a.xlsx has an unknown ending"),
        (("run", "new.csv", "--keep", "colour"), "--keep: no column 'colour'"),
        (("run", "new.csv", "-o", "no/a.csv"), "no folder"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, words: tuple[str, ...], message: str) -> None:
    before = sorted(folder.iterdir())
    done = ddl("predict", *words, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_reader_that_leaves_ends_the_command(folder: Path) -> None:
    words = " ".join(f"'{word}'" for word in internal.argv("cli", "predict", "run", *["new.csv"] * 200))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -2"], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert len(done.stdout.splitlines()) == 2


def test_the_command_itself_imports_nothing_heavy() -> None:
    assert heavy(["predict", "--help"]) == "[]"
