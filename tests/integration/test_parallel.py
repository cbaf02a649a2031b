"""tests/parallel on every engine that needs a launcher."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.flavor import find_mpirun
from tests.integration.parts import needs

ROOT = Path(__file__).parents[2]
SECONDS = 240
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
SHARED_CORES = "--map-by :OVERSUBSCRIBE --bind-to none --mca mpi_yield_when_idle 1"


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    ("engine", "ranks", "windows"),
    [("mpi", 2, "^ucx"), ("mpi", 4, "^ucx"), ("mpi", 4, "^ucx,sm"), ("horovod", 2, "^ucx"), ("horovod", 4, "^ucx")],
    ids=["mpi-2", "mpi-4", "mpi-4 without shared memory", "horovod-2", "horovod-4"],
)
def test_parallel(engine: str, ranks: int, windows: str) -> None:
    needs("mpirun")
    needs(engine)
    launch = [str(find_mpirun()), "--np", str(ranks), *SHARED_CORES.split(), "--mca", "osc", windows]
    code, output = run_until_timeout([*launch, *pytest_on_every_rank(engine)])
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) > 0
    assert "skipped" not in output, output


def test_a_node_without_shared_memory_says_so_and_goes_on() -> None:
    needs("mpirun")
    text = "from hvd_train import plugins; assert plugins.create('hvd_train.comm', 'mpi').shared_memory is None"
    launch = [str(find_mpirun()), "--np", "2", *SHARED_CORES.split(), "--mca", "osc", "^ucx,sm"]
    code, output = run_until_timeout([*launch, sys.executable, "-m", "mpi4py", "-c", text])
    assert code == 0, output
    assert output.count("reductions go by messages, which is slower") == 1, output


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
