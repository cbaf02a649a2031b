"""`import horovod` in a script under `ddl run`: which module it loads, and how the job ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.launch import engines
from hvd_train.rank import horovod_run
from tests.integration.ddl import ROOT, alive, ddl, ddl_here, ranks, start, wait_for
from tests.integration.parts import needs

SCRIPT = """\
import horovod
import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from horovod.common.process_sets import global_process_set
from horovod.common.util import _cache, env, extension_available, gloo_built, gpu_available, mpi_built, nccl_built
from horovod.common.elastic import HorovodInternalError as same_error, HostsUpdatedInterrupt, ObjectState, State, run_fn
from horovod.data import AsyncDataLoaderMixin, BaseDataLoader
from horovod.runner import run
from horovod.runner.util.threads import in_thread
from horovod.torch.compression import Compression
from horovod.torch.elastic import TorchState
from horovod.torch.functions import broadcast_object
from horovod.torch.optimizer import DistributedOptimizer
from horovod.torch.sync_batch_norm import SyncBatchNorm
from horovod.torch.elastic.sampler import ElasticSampler
from horovod.torch.mpi_ops import Sum, allreduce_async_, synchronize
import horovod.torch.mpi_ops

assert horovod.torch is hvd and horovod.torch.mpi_ops.allreduce is hvd.allreduce
assert hvd.HorovodInternalError is HorovodInternalError and hvd.global_process_set is global_process_set
assert same_error is HorovodInternalError and run is horovod.run
hvd.init()
x = torch.tensor([1.0 + hvd.rank()])
synchronize(allreduce_async_(x, op=Sum))
if hvd.rank() == 0:
    print(f"{horovod.__version__} {x.item()} {hvd.__file__}")
"""


@pytest.mark.parametrize(("engine", "file"), [("mpi", "hvd_train/torch/"), ("horovod", "horovod/torch/")])
def test_the_engine_decides_which_horovod_a_script_imports(engine: str, file: str, tmp_path: Path) -> None:
    needs("mpirun")
    needs("horovod") if engine == "horovod" else None
    (tmp_path / "train.py").write_text(SCRIPT)
    for what in (["train.py"], ["-m", "train"]):
        done = ddl("run", "--np", "2", "--engine", engine, *what, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(rf"0\.28\.1 3\.0 \S+/{file}__init__\.py\n", done.stdout), done.stdout
        said = [line for line in done.stderr.splitlines() if line.startswith("ddl: horovod is ")]
        assert len(said) == 1
        assert ("hvd_train.torch on MPI" in said[0]) == (engine == "mpi")


def test_a_script_without_horovod_causes_no_message(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("print('plain')\n")
    done = ddl("run", "--engine", "mpi", "plain.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "plain\n")
    assert "horovod" not in done.stderr


MISSING = """\
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert error.name == name
        print(error)
"""


def test_missing_parts_of_horovod_are_refused_in_a_sentence(tmp_path: Path) -> None:
    inside = ["common.basics", "runner.launch", "runner.common", "runner.util.network", "torch.mpi_lib_v2"]
    names = [f"horovod.{n}" for n in ("tensorflow", "keras", "mxnet", "spark", "ray", *inside)]
    (tmp_path / "other.py").write_text(MISSING)
    done = ddl("run", "--engine", "mpi", "other.py", "--", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in said] == [f"no {name}" for name in names]
    assert all(line.endswith("; --engine horovod runs the real Horovod") for line in said)


CALLS = """\
import os, sys
from hvd_train.rank import horovod_import
horovod_import.install()
import horovod, beside

def train(rate, steps=1):
    import horovod.torch as hvd, torch
    hvd.init()
    print(f"rank {hvd.rank()} of {hvd.size()}")
    total = hvd.allreduce(torch.tensor([rate * (1 + hvd.rank())]), op=hvd.Sum)
    return hvd.rank(), total, beside.twice(steps), os.getcwd()

def fails():
    import horovod.torch as hvd
    hvd.init()
    if hvd.rank() == 1:
        raise ValueError("three is enough")
    hvd.barrier()

for rank, (number, total, twice, folder) in enumerate(horovod.run(train, args=(2.0,), kwargs={"steps": 4}, np=2)):
    assert (number, total.item(), twice, folder) == (rank, 6.0, 8, os.getcwd())
try:
    horovod.run(fails, num_proc=2)
except RuntimeError as error:
    print(error)
"""


def test_a_function_is_called_on_every_rank_as_from_a_notebook(tmp_path: Path) -> None:
    """The function uses a module beside it. A user's cli.py beside it does not disturb ddl."""
    needs("mpirun")
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "cli.py").write_text("raise SystemExit('not this one')\n")
    before = set(Path(tempfile.gettempdir()).glob("ddl-call-*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "calls.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2\n" in done.stdout
    assert "rank 1 of 2\n" in done.stdout
    said = done.stdout[done.stdout.index("horovod.run: the job failed with exit code 1") :]
    assert "the first failure: rank 1 on " in said
    assert "ValueError: three is enough" in said
    assert set(Path(tempfile.gettempdir()).glob("ddl-call-*")) <= before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slots": 2, "min_np": 1}, "ddl's own engine does not support min_num_proc, slots; leave it out"),
        ({"hosts": "a:1", "hostfile": "hosts"}, "hosts and hostfile are both given"),
        ({"use_gloo": True, "use_mpi": True}, "use_gloo and use_mpi are both given"),
    ],
)
def test_options_of_run_that_cannot_be_used_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        horovod_run.run(print, **options)


def test_arguments_for_ssh_and_mpirun_are_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        """Record the command instead of starting a job."""

    asked: list[list[str]] = []

    def follow(command: list[str]) -> None:
        asked.append(command)
        raise Asked

    monkeypatch.setattr(horovod_run, "_follow", follow)
    with pytest.raises(Asked):
        horovod_run.run(print, hosts="n1:1,n2:1", ssh_port=2222, ssh_identity_file="a key", mpi_args="--tag-output")
    (words,) = asked
    assert words[words.index("--ssh-args") + 1] == "-p 2222 -i 'a key'"
    assert words[words.index("--launcher-args") + 1] == "--tag-output"


def test_a_rank_of_several_starts_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="this process is one of 2 ranks"):
        horovod_run.run(print)


@pytest.mark.parametrize(
    ("wanted", "installed", "expected"),
    [("auto", True, "horovod"), ("auto", False, "mpi"), ("mpi", True, "mpi"), ("horovod", True, "horovod")],
)
def test_auto_leaves_a_script_the_horovod_that_is_installed(
    wanted: str, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: object() if installed else None)
    assert engines.script_engine(wanted) == expected


def test_the_engine_reaches_ranks_in_their_arguments(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = ddl_here("run", "--np", "2", "--engine", "mpi", "--dry-run", "train.py", "--", "--lr", "1", cwd=tmp_path)
    told = (
        rf" hvd_train --script --engine=mpi --output={tmp_path}/runs/train-[-\d]+ --tee=0 {tmp_path}/train.py --lr 1\n"
    )
    assert re.search(told, done.stdout), done.stdout
    done = ddl_here("run", "--np", "2", "--engine", "mpi", "--dry-run", "-m", "train", cwd=tmp_path)
    told = rf" hvd_train --script --engine=mpi --output={tmp_path}/runs/train-[-\d]+ --tee=0 -m train\n"
    assert re.search(told, done.stdout), done.stdout
    assert not (tmp_path / "runs").exists()


ALONE = """\
import hvd_train.torch as hvd, sys, torch
assert "mpi4py.MPI" not in sys.modules, "MPI starts with init, for worker processes import the script too"
hvd.init()
assert (hvd.rank(), hvd.size(), hvd.local_size(), hvd.cross_size()) == (0, 1, 1, 1)
x = torch.arange(6.0).view(2, 3)
for found in (hvd.allreduce(x), hvd.allgather(x), hvd.broadcast(x, 0), hvd.alltoall(x), hvd.reducescatter(x)):
    assert torch.equal(found, x)
assert hvd.join() == 0
hvd.barrier()
print("alone")
"""


def test_it_works_alone_without_a_launcher() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr


def test_the_public_names_are_those_of_horovod() -> None:
    needs("horovod")
    import horovod.torch as real

    import hvd_train.torch as ours

    submodules = {"compression", "functions", "mpi_lib_v2", "mpi_ops", "optimizer", "sync_batch_norm"}
    theirs = {name for name in dir(real) if not name.startswith("_")} - submodules - {"check_extension"}
    assert set(ours.__all__) - theirs == {"is_homogeneous"}
    assert theirs - set(ours.__all__) == set()
    assert [name for name in ours.__all__ if not hasattr(ours, name)] == []


STALLS = """\
import horovod.torch as hvd, time, torch
hvd.init()
if hvd.rank() == 1:
    time.sleep(60)
hvd.allreduce(torch.ones(2), name="layer.7")
"""


def test_a_stall_is_reported_and_ends_the_job_on_request(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "stalls.py").write_text(STALLS)
    seconds = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "3"}
    began = time.monotonic()
    done = ddl("run", "--np", "2", "--engine", "mpi", "stalls.py", cwd=tmp_path, **seconds)
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert re.search(
        r"\] \[0\] WARNING hvd: stalled for [12] s: allreduce\.layer\.7 waits for rank 1$", done.stderr, re.M
    )
    assert "HorovodInternalError: allreduce.layer.7: stalled for 3 s: allreduce.layer.7 waits for rank 1" in done.stderr


ENDLESS = """\
import horovod.torch as hvd, pathlib, torch
hvd.init()
x = torch.ones(1 << 20)
hvd.allreduce_(x, name="x")
pathlib.Path(f"reducing-{hvd.rank()}").touch()
while True:
    hvd.allreduce_(x, name="x")
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_an_allreduce_ends_the_job_and_leaves_nothing(victim: int, tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "endless.py").write_text(ENDLESS)
    job = start("run", "--np", "2", "--engine", "mpi", "endless.py", cwd=tmp_path)
    for rank in (0, 1):
        wait_for(tmp_path, f"reducing-{rank}")
    processes = ranks(job.pid)
    shared = {m.path for p in processes for m in p.memory_maps() if m.path.startswith("/dev/shm/")}
    assert shared
    began = time.monotonic()
    next(p for p in processes if p.environ()["OMPI_COMM_WORLD_RANK"] == str(victim)).send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=30)
    assert time.monotonic() - began < 8
    assert job.returncode == 1
    assert f"rank {victim} on" in errors
    assert alive(processes) == []
    assert [name for name in shared if Path(name).exists() and name not in _open()] == []


def _open() -> set[str]:
    """Return the shared memory files that some process uses."""
    found: set[str] = set()
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error, PermissionError):
            found |= {m.path for m in p.memory_maps()}
    return found


RAISES = """\
import horovod.torch as hvd, torch
hvd.init()
for step in range(5):
    if hvd.rank() == 1 and step == 3:
        raise ValueError("three is enough")
    hvd.allreduce(torch.ones(2), name="x")
"""


def test_a_rank_that_raises_ends_the_job_and_is_named_as_the_cause(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "raises.py").write_text(RAISES)
    began = time.monotonic()
    done = ddl("run", "--np", "2", "--engine", "mpi", "raises.py", cwd=tmp_path)
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    cause = done.stderr[done.stderr.index("ddl: the first failure: rank 1 on") :]
    assert "ValueError: three is enough" in cause


LEAVES = """\
import horovod.torch as hvd, sys, torch
hvd.init()
if hvd.rank() == 1:
    sys.exit(0)
try:
    hvd.allreduce(torch.ones(2), name="x")
except hvd.HorovodInternalError as error:
    print(error)
"""


def test_no_rank_waits_for_one_that_has_ended(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "leaves.py").write_text(LEAVES)
    done = ddl("run", "--np", "2", "--engine", "mpi", "leaves.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rank 1 has shut down" in done.stdout


COMES_AND_GOES = """\
import horovod.torch as hvd, time, torch

def seconds_in_the_background(name):
    began = time.monotonic()
    handle = hvd.allreduce_async(torch.ones(2), op=hvd.Sum, name=name)
    while not hvd.poll(handle):
        time.sleep(0.001)
    assert hvd.synchronize(handle).tolist() == [2.0, 2.0]
    return time.monotonic() - began

for time_ in range(8):
    hvd.init()
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == 2
    took = [seconds_in_the_background(f"{i}") for i in range(5)]
    assert min(took) < 0.1, took
    hvd.shutdown()
hvd.init()
hvd.allreduce(torch.ones(1))
"""


def test_ranks_start_and_leave_together_without_a_barrier_and_continue_in_the_background(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "comes.py").write_text(COMES_AND_GOES)
    done = ddl("run", "--np", "2", "--engine", "mpi", "comes.py", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
