"""Every command of docs/tutorial.md runs as it is written: on this machine, on hosts over ssh, and with a fake SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.fake_slurm import FakeSlurm, shown
from tests.cluster.hosts import Hosts
from tests.integration.ddl import ROOT
from tests.integration.parts import needs

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FILES = dict(re.findall(r"`([\w.]+\.(?:py|yaml|txt))`[^`]*\n```\w+\n(.*?)```", PAGE, re.DOTALL))
"""Text of each file that the reader writes, by name."""
ON_CLUSTERS = ("Several hosts", "SLURM")
SECONDS = 400

pytestmark = pytest.mark.timeout(900)


def script(section: str) -> str:
    """Return the commands of `section` as a shell script that ends at the first failure."""
    text = re.sub(r"^```.*?^```$", "", SECTIONS[section], flags=re.MULTILINE | re.DOTALL)
    return "\n".join(["set -ex", *re.findall(r"^    (\S.*)$", text, re.MULTILINE)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the reader writes; PATH has the `ddl` of this checkout."""
    program = tmp_path / "bin" / "ddl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    made = tmp_path / "digits"
    made.mkdir()
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


def run(section: str, cwd: Path) -> str:
    """Return the output of the commands of `section`, which all succeed."""
    argv = ["bash", "-c", script(section)]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_the_files_and_sections_are_found() -> None:
    assert set(FILES) == {"net.py", "own.yaml", "train.py", "hosts.txt"}
    assert set(ON_CLUSTERS) < set(SECTIONS)


def test_on_one_machine(folder: Path) -> None:
    needs("mpirun")
    first, *others = (section for section in SECTIONS if section not in ON_CLUSTERS)
    assert "summary.json" in run(first, folder.parent)
    printed = "".join(run(section, folder) for section in others)
    assert "rank 1 of 2: loss" in printed
    assert list(folder.glob("compare-*/compare.png"))


def test_on_several_hosts(folder: Path, hosts: Hosts) -> None:
    needs("mpirun")
    environment = ["env", "-C", folder, f"PATH={os.environ['PATH']}", f"PYTHONPATH={ROOT}"]
    done = hosts.run("n1", [*environment, "bash", "-c", f"ddl init\n{script('Several hosts')}"], timeout=SECONDS)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_with_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ["PATH"]
    slurm = FakeSlurm(folder.parent / "slurm", monkeypatch)
    monkeypatch.setenv("PATH", f"{folder.parent / 'slurm'}:{path}")
    slurm.shows(shown("4711", "RUNNING"))
    subprocess.run(["ddl", "init"], cwd=folder, capture_output=True, check=True)
    printed = run("SLURM", folder)
    assert "#SBATCH --ntasks-per-node=2" in printed
    assert {call.split()[0] for call in slurm.calls} == {"sbatch", "scancel"}
