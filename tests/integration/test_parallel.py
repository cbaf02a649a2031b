"""tests/parallel on every engine that needs a launcher."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 240
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
SHARED_CORES = "--map-by :OVERSUBSCRIBE --bind-to none --mca osc ^ucx --mca mpi_yield_when_idle 1"


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("engine", ["mpi", "horovod"])
def test_parallel(engine: str, ranks: int) -> None:
    if engine == "horovod" and not importlib.util.find_spec("horovod"):
        skip_but_fail_in_ci("Horovod is not installed: scripts/install-horovod")
    code, output = run_until_timeout([*mpirun(ranks), *pytest_on_every_rank(engine)])
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) > 0
    assert "skipped" not in output, output


def mpirun(ranks: int) -> list[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpirun", path=path)
    return [found or skip_but_fail_in_ci("there is no mpirun"), "--np", str(ranks), *SHARED_CORES.split()]


def pytest_on_every_rank(engine: str) -> list[str]:
    options = ["-x", "--engine", engine, "-p", "no:cacheprovider", "--color=no"]
    hang = ["--timeout=120", "-o", "timeout_method=thread"]
    return [sys.executable, "-m", "mpi4py", "-m", "pytest", "tests/parallel", *options, *hang]


def run_until_timeout(command: list[str]) -> tuple[int, str]:
    """Exit code and output; mpirun gets a SIGTERM in time, so that it takes its ranks along."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=15)
        pytest.fail(f"no end after {SECONDS} s\n{output}")
    finally:
        process.kill()
    return process.returncode, output


def skip_but_fail_in_ci(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a skip outside CI)")
    pytest.skip(reason)
