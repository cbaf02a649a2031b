"""tests/parallel on every engine that needs a launcher, and on both implementations of Horovod's API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.launch.flavor import find_mpirun
from tests.integration.parts import needs

ROOT = Path(__file__).parents[2]
SECONDS = 480
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def bodies(*names: str) -> list[str]:
    return [f"tests/parallel/test_{name}.py" for name in names]


ENGINE = bodies("comm", "checked", "mailbox", "trainer")
NODES = "tests/parallel/test_nodes.py"
EVERYTHING = ["tests/parallel", "--ignore-glob=*/test_horovod_*", f"--ignore={NODES}"]
API, SETTINGS = (f"tests/parallel/test_horovod_{name}.py" for name in ("api", "settings"))
SHARED_CORES = "--map-by :OVERSUBSCRIBE --bind-to none --mca mpi_yield_when_idle 1"


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    ("engine", "ranks", "windows", "files"),
    [
        ("mpi", 2, "^ucx", EVERYTHING),
        ("mpi", 4, "^ucx", [*ENGINE, *bodies("asynchronous", "replicas")]),
        ("mpi", 4, "^ucx,sm", bodies("comm", "trainer")),
        ("horovod", 2, "^ucx", [*ENGINE, *bodies("agents", "parallelism", "replicas")]),
        ("horovod", 4, "^ucx", bodies("comm", "trainer")),
    ],
    ids=["mpi-2", "mpi-4", "mpi-4 without shared memory", "horovod-2", "horovod-4"],
)
def test_parallel(engine: str, ranks: int, windows: str, files: list[str]) -> None:
    """The engine and what builds on it. Everything runs once; all of it runs on 1 to 8 threads in tests/single."""
    needs("mpirun")
    needs(engine)
    all_pass(ranks, windows, *files, "--engine", engine)


@pytest.mark.timeout(SECONDS + 30)
def test_nodes_with_other_numbers_of_ranks() -> None:
    needs("mpirun")
    all_pass(8, "^ucx", NODES)


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(("module", "ranks"), [("horovod.torch", 2), ("hvd_train.torch", 2), ("hvd_train.torch", 4)])
def test_horovod_api(module: str, ranks: int) -> None:
    """Horovod hangs if it is initialized after its settings were tested; ddl's module does not."""
    needs("horovod" if module == "horovod.torch" else "mpi")
    files = [API] if module == "horovod.torch" else [API, SETTINGS]
    all_pass(ranks, "^ucx", *files, "--hvd", module)


@pytest.mark.parametrize("asked", ["environment", "script"])
def test_horovod_settings(asked: str) -> None:
    needs("horovod")
    all_pass(2, "^ucx", SETTINGS, "--hvd", "horovod.torch", "-k", asked)


def test_a_node_without_shared_memory_says_so_and_goes_on() -> None:
    needs("mpirun")
    text = "from hvd_train.config import plugins; assert plugins.create('hvd_train.comm.engines', 'mpi').shared_memory is None"
    launch = [str(find_mpirun()), "--np", "2", *SHARED_CORES.split(), "--mca", "osc", "^ucx,sm"]
    code, output = run_until_timeout([*launch, sys.executable, "-m", "mpi4py", "-c", text])
    assert code == 0, output
    assert output.count("reductions go by messages, which is slower") == 1, output


def all_pass(ranks: int, windows: str, *arguments: str) -> None:
    """pytest with `arguments` passes on `ranks` ranks; `windows` are MPI's components for one-sided communication."""
    launch = [str(find_mpirun()), "--np", str(ranks), *SHARED_CORES.split(), "--mca", "osc", windows]
    code, output = run_until_timeout([*launch, *pytest_on_every_rank(*arguments)])
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) > 0
    assert "skipped" not in output, output


def pytest_on_every_rank(*arguments: str) -> list[str]:
    options = ["-x", "-p", "no:cacheprovider", "--color=no"]
    hang = ["--timeout=120", "-o", "timeout_method=thread"]
    return [sys.executable, "-m", "mpi4py", "-m", "pytest", *arguments, *options, *hang]


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
