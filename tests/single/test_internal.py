"""Programs that ddl starts by itself, in a folder with user files of the same names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli.remote import ssh
from hvd_train.rank import internal

NAMES = ("cli", "hvd_train", "psutil", "typer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    return tmp_path


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_the_files_of_a_user_do_not_hide_those_of_ddl(folder: Path, path: str) -> None:
    """The environment has no ddl, as with a checkout that is not installed."""
    own = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(internal.argv("cli.follow.stacks", "0"), cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ssh.unframed(done.stdout) == {"0": {"answered": False, "text": "process 0 is not a rank of ddl"}}


def test_words_reach_the_module_and_the_path_is_that_of_the_environment(folder: Path) -> None:
    probe = "import json, sys; print(json.dumps([sys.argv[1:], sys.path[0], 'torch' in sys.modules]))"
    package = folder / "probe"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text(probe)
    own = {**os.environ, "PYTHONPATH": str(folder / "first") + os.pathsep + str(folder)}
    done = subprocess.run(
        internal.argv("probe.words", "a b", "--c"), cwd=folder / "probe", env=own, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [["a b", "--c"], str(folder / "first"), False], done.stderr
