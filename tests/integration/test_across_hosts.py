"""`ddl run` on several hosts, over ssh, from one of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cli.launch.flavor import find_mpirun
from tests.cluster.hosts import Done, Hosts, complaints
from tests.integration.ddl import DIGITS, ROOT, SMALL, ddl, summary
from tests.integration.parts import needs
from tests.integration.test_parallel import ENGINE, ENVIRONMENT, bodies, pytest_on_every_rank

SECONDS = 480
pytestmark = pytest.mark.timeout(2 * SECONDS)


def run(hosts: Hosts, count: int, slots: int, *arguments: str | Path) -> Done:
    """`ddl run` started on n1 for `count` hosts."""
    command = [sys.executable, "-m", "cli", "run", "--hostfile", hosts.hostfile(count, slots), *arguments]
    done = hosts.run("n1", command, cwd=hosts.folder, timeout=SECONDS)
    assert not any(hosts.processes(name) for name in hosts.names)
    return done


def places(folder: Path) -> list[str]:
    """The host of each rank, in rank order."""
    logs = sorted((folder / "logs").iterdir())
    first = [re.match(r"rank \d+ of \d+ on (\w+)", log.read_text()) for log in logs]
    return [found[1] for found in first if found]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return safetensors.torch.load_file(newest / "model.safetensors")


def test_digits_reach_their_accuracy_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    done = run(hosts, 2, 2, "--np", "4", "--output", tmp_path / "out", DIGITS)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "out")["eval"]["accuracy"] >= 0.95
    assert places(tmp_path / "out") == ["n1", "n1", "n2", "n2"]
    assert complaints(done) == []


def test_ranks_on_several_hosts_equal_ranks_on_one(hosts: Hosts, tmp_path: Path) -> None:
    """48 samples a step, by two ranks of one host, of two hosts, and by six ranks of three, on both engines."""
    needs("horovod")
    model = tmp_path / "model.yaml"
    model.write_text(SMALL)
    alone = ddl("run", "--np", "2", "--output", tmp_path / "alone", model, "data.batch_size=24", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected = parameters(tmp_path / "alone")
    for engine, count, slots in [("mpi", 2, 1), ("mpi", 3, 2), ("horovod", 3, 2)]:
        out = tmp_path / f"{engine}-{count}x{slots}"
        told = ["--engine", engine, "--output", out, model, f"data.batch_size={48 // (count * slots)}"]
        done = run(hosts, count, slots, *told)
        assert done.returncode == 0, done.stderr
        assert places(out) == [name for name in hosts.names[:count] for _ in range(slots)]
        found = parameters(out)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
        ring = 2 * (count * slots - 1) / (count * slots)
        assert summary(out)["bytes_sent"] == pytest.approx(ring * summary(tmp_path / "alone")["bytes_sent"], rel=0.02)


@pytest.mark.usefixtures("hosts")
def test_a_step_sends_over_the_network_what_a_ring_would(tmp_path: Path) -> None:
    """2(N-1)/N times the payload from each host, whatever its number of ranks; fp16 half of it.

    Horovod leaves it to MPI_Allreduce, which has no regard for hosts: at most what the two ranks of one count, 2 * 2(P-1)/P.
    """
    needs("horovod")
    command = [
        sys.executable,
        "-m",
        "benchmarks.across_hosts",
        "--rounds",
        "1",
        "--steps",
        "2",
        "--timed",
        "--wire",
        "3x2",
        "--workload",
        "conv",
    ]
    command += ["--variants", "ddl_mpi", "ddl_mpi+fp16", "ddl_horovod", "--output", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert case["hosts"] == ["n1", "n2", "n3"]
    assert case["figures"]["ddl_mpi"]["wire"] == pytest.approx(1, rel=0.03)
    assert case["figures"]["ddl_mpi+fp16"]["wire"] == pytest.approx(0.5, rel=0.03)
    counted = 2 * (2 * 5 / 6) / (2 * 2 / 3)
    assert 1 < case["figures"]["ddl_horovod"]["wire"] < 1.03 * counted


@pytest.mark.parametrize(
    ("slots", "files"),
    [((2, 2), [*ENGINE, *bodies("asynchronous")]), ((3, 1), bodies("trainer", "replicas"))],
    ids=["2-2", "3-1"],
)
def test_the_bodies_of_engine_and_trainer_on_two_hosts(hosts: Hosts, slots: tuple[int, ...], files: list[str]) -> None:
    """What tests/integration/test_parallel.py runs on one host; of unequal hosts, what builds on the engine."""
    file = hosts.folder / "slots"
    file.write_text("".join(f"{name} slots={n}\n" for name, n in zip(hosts.names, slots, strict=False)))
    options = "--np 4 --bind-to none --mca osc ^ucx --mca btl_tcp_flags send,inplace --mca mpi_yield_when_idle 1"
    launch = [find_mpirun(), "--hostfile", file, *options.split()]
    for name in ENVIRONMENT:
        launch += ["-x", name]
    rank = ["/usr/bin/env", "-C", ROOT, *pytest_on_every_rank(*files, "--engine", "mpi")]
    done = hosts.run("n1", [*launch, *rank], timeout=SECONDS, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout
