"""`ddl run` end to end: real mpirun, real signals, killed processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from tests.integration.ddl import (
    DIGITS,
    LONG,
    ROOT,
    SMALL,
    alive,
    ddl,
    ddl_here,
    falters,
    long_yaml,
    ranks,
    start,
    summary,
    wait_for,
    wait_for_steps,
)  # fmt: skip
from tests.integration.parts import needs

ENDLESS = ["train.epochs=100000", "checkpoint.every=100000000", "train.eval_every=1000000"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.yaml"
    file.write_text(SMALL)
    return file


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return safetensors.torch.load_file(newest / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        ["--np", "4"],
        ["--np", "2", "--engine", "horovod"],
        ["--np", "2", "--engine", "horovod", "--launcher", "horovodrun"],
        ["--np", "1"],
        ["--np", "2", "--hostfile", ROOT / "hostfiles" / "openmpi.txt"],
    ],
    ids=lambda o: " ".join(map(str, o)),
)
def test_digits_reach_their_accuracy(options: list[str | Path], tmp_path: Path) -> None:
    needs("horovod" if "horovod" in options else "mpirun")
    done = ddl("run", *options, "--output", "out", DIGITS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "out")["eval"]["accuracy"] >= 0.95
    assert summary(tmp_path / "out")["world_size"] == int(options[1])
    assert "accuracy" in done.stdout
    assert "<std" not in done.stdout + done.stderr, "horovodrun's tags are no business of the user's"
    assert done.stderr.replace("ddl: 4 ranks share 2 cores", "").count("\n") <= 1, done.stderr


def test_engines_agree_with_one_process(model: Path, tmp_path: Path) -> None:
    """np=1 with batch 64, np=2 with 32 and np=4 with 16 agree to 1e-6 on every engine."""
    needs("mpirun")
    needs("horovod")
    found = {}
    for engine, np in [("single", 1), ("mpi", 2), ("mpi", 4), ("horovod", 2), ("horovod", 4)]:
        out = tmp_path / f"{engine}-{np}"
        done = ddl(
            "run",
            "--np",
            f"{np}",
            "--engine",
            engine,
            "--output",
            out,
            model,
            f"data.batch_size={64 // np}",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert summary(out)["engine"] == engine
        found[engine, np] = parameters(out)
    for key, values in found.items():
        for name, value in values.items():
            torch.testing.assert_close(value, found["single", 1][name], rtol=1e-6, atol=1e-9, msg=f"{key} {name}")


def test_a_run_folder_has_everything(model: Path, tmp_path: Path) -> None:
    """Includes the command, which is the one that --dry-run prints."""
    needs("mpirun")
    told = ["run", "--np", "2", "--output", "out dir", "--tee", "all", model]
    printed = ddl(*told, "--dry-run", cwd=tmp_path)
    done = ddl(*told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out dir"
    assert shlex.split((out / "command.txt").read_text()) == shlex.split(printed.stdout)
    assert {p.name for p in out.iterdir()} == {
        "config.json", "data.json", "environment.json", "command.txt", "metrics.jsonl", "progress.json", "tensorboard",
        "checkpoints", "logs", "summary.json",
    }  # fmt: skip
    assert json.loads((out / "data.json").read_text())["outputs"] == 10
    config = json.loads((out / "config.json").read_text())
    assert (config["train"]["accumulate"], config["model"]["activation"]) == (1, "relu")
    assert {
        "world_size",
        "engine",
        "strategy",
        "steps",
        "epochs",
        "samples_per_second",
        "eval",
        "bytes_sent",
        "seconds",
    } < set(summary(out))
    assert (summary(out)["shard_optimizer"], summary(out)["fusion_mb"]) == (True, None)
    assert set(summary(out)["seconds"]) >= {"data", "forward", "backward", "comm", "optimizer"}
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("eval") == 2
    assert "rank 1 of 2" in (out / "logs" / "rank-1.log").read_text()
    assert "rank 1 of 2" in done.stdout


def test_the_measured_size_of_buckets_is_recorded(model: Path, tmp_path: Path) -> None:
    needs("mpirun")
    done = ddl("run", "--np", "2", "--output", "out", model, "train.epochs=1", "sync.compression=fp16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "out")
    assert not found["shard_optimizer"]
    assert found["fusion_mb"] in [2**i for i in range(7)]


def test_the_printed_command_can_be_pasted(model: Path, tmp_path: Path) -> None:
    """Includes a list of 300 KB, which no shell and no launcher accepts in one word."""
    needs("mpirun")
    (tmp_path / "long.py").write_text(LONG)
    model.write_text(long_yaml())
    arguments = ["run", "--np", "2", "--output", "it's; a $HOME", "-x", "NOTE=a 'b' $c", model, "train={steps: 2}"]
    printed = ddl(*arguments, "--dry-run", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert not (tmp_path / "it's; a $HOME").exists()
    pasted = subprocess.run(["bash"], input=printed.stdout, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    assert summary(tmp_path / "it's; a $HOME")["world_size"] == 2


def test_stopped_and_resumed_is_bitwise_equal(model: Path, tmp_path: Path) -> None:
    needs("mpirun")
    model.write_text(SMALL + "checkpoint: {every: 25}\n")
    options = ["--np", "2", model, "model.dropout=0.2", "optimizer={name: AdamW, lr: 0.01}", "train.precision=fp32"]
    through = ddl("run", "--output", "through", *options, cwd=tmp_path)
    first = ddl("run", "--output", "twice", *options, "train={steps: 40}", cwd=tmp_path)
    second = ddl("run", "--resume", "twice", *options, cwd=tmp_path)
    assert (through.returncode, first.returncode, second.returncode) == (0, 0, 0), second.stderr
    assert summary(tmp_path / "twice")["steps"] == summary(tmp_path / "through")["steps"]
    wanted, found = parameters(tmp_path / "through"), parameters(tmp_path / "twice")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    steps = [json.loads(x)["step"] for x in (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_resume_latest_finds_the_newest_run_of_the_file(model: Path, tmp_path: Path) -> None:
    assert ddl("run", model, "train.epochs=1", cwd=tmp_path).returncode == 0
    done = ddl("run", "--resume", "latest", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (only,) = (tmp_path / "runs").iterdir()
    assert summary(only)["epochs"] == 2


def test_resumed_into_something_else(model: Path, tmp_path: Path) -> None:
    """State that fits is restored, the rest is named on stderr, and the other branch is moved."""
    needs("mpirun")
    model.write_text(SMALL + "checkpoint: {every: 10}\n")
    first = ddl("run", "--np", "2", "--output", "out", model, "train={steps: 30, precision: fp64}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    changed = ["optimizer={name: AdamW}", "train={steps: 20, precision: fp16}", "sync.compression=topk"]
    at = tmp_path / "out" / "checkpoints"
    second = ddl("run", "--np", "2", "--resume", at / "step-00000010", model, *changed, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    told = [
        line.removeprefix("ddl: warning: --resume: ") for line in second.stderr.splitlines() if "--resume: " in line
    ]
    assert sorted(text.partition(" was ")[0] for text in told[:-1]) == [
        "optimizer.name", "sync.compression.name", "train.precision", "train.precision",
    ]  # fmt: skip
    assert told[-1].startswith("step-00000030, step-00000020 moved to")
    assert sorted(f.name for f in at.iterdir()) == ["abandoned-1", "step-00000010", "step-00000020"]
    refused = ddl("run", "--np", "2", "--resume", "out", model, "model.hidden=[8]", cwd=tmp_path)
    assert refused.returncode == 2
    assert (
        "step-00000020 is of another model: '1.bias' is of shape (32,) there and of shape (8,) here" in refused.stderr
    )
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, ["--np", "2"]),
        (signal.SIGINT, ["--np", "2"]),
        (signal.SIGUSR1, ["--np", "1"]),
        (signal.SIGINT, ["--np", "1"]),
    ],
    ids=["SIGTERM mpirun", "Ctrl-C mpirun", "SIGUSR1 local", "Ctrl-C local"],
)
def test_a_signal_ends_the_step_saves_and_exits_with_75(
    number: int, options: list[str], model: Path, tmp_path: Path
) -> None:
    needs("mpirun")
    job = start("run", *options, "--output", "out", model, *ENDLESS, cwd=tmp_path)
    wait_for_steps(tmp_path / "out")
    job.send_signal(number)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75, errors
    out = summary(tmp_path / "out")
    assert out["ended"].startswith("stopped by a signal after step")
    assert out["steps_per_second"] > 0
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step-{out['steps']:08d}"]


@pytest.mark.parametrize("engine", ["mpi", "horovod"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_within_5_seconds_and_is_named(
    engine: str, victim: int, model: Path, tmp_path: Path
) -> None:
    needs("mpirun")
    needs(engine)
    job = start("run", "--np", "2", "--engine", engine, "--output", "out", model, *ENDLESS, cwd=tmp_path)
    wait_for_steps(tmp_path / "out")
    processes = ranks(job.pid)
    shared = {word for p in processes for word in _shared_memory(p)}
    by_rank = {int(p.environ()["OMPI_COMM_WORLD_RANK"]): p for p in processes}
    assert sorted(by_rank) == [0, 1]
    began = time.monotonic()
    by_rank[victim].send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert job.returncode == 1
    assert re.search(rf"the first failure: rank {victim} on \S+ was killed by signal 9 \(SIGKILL\)", errors), errors
    assert alive(processes) == []
    assert [name for name in shared if Path(name).exists()] == []


REDUCES = """\
import os, pathlib, sys, torch
from hvd_train.config import plugins
comm = plugins.create("hvd_train.comm.engines", "mpi")
numel = 1 << 24
x = comm.allocate(numel, torch.float32) if sys.argv[1] == "shared" else torch.zeros(numel)
comm.all_reduce_(x)
pathlib.Path(f"reducing-{comm.rank}").touch()
while True:
    comm.all_reduce_(x)
"""


@pytest.mark.parametrize("memory", ["shared", "ordinary"])
def test_a_rank_killed_inside_a_reduction_leaves_no_memory_and_nobody_waiting(memory: str, tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "reduces.py").write_text(REDUCES)
    before = set(Path("/dev/shm").iterdir())
    job = start("run", "--np", "2", "reduces.py", memory, cwd=tmp_path)
    for rank in (0, 1):
        wait_for(tmp_path, f"reducing-{rank}")
    processes = ranks(job.pid)
    shared = {word for p in processes for word in _shared_memory(p)}
    assert shared
    began = time.monotonic()
    next(p for p in processes if p.environ()["OMPI_COMM_WORLD_RANK"] == "1").send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert "rank 1 on" in errors
    assert alive(processes) == []
    assert [name for name in shared if Path(name).exists()] == []
    assert not set(Path("/dev/shm").iterdir()) - before - _others()


def _others() -> set[Path]:
    """Return the shared memory files that some process has open."""
    found: set[Path] = set()
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error, PermissionError):
            found |= {Path(m) for m in _shared_memory(p)}
    return found


def _shared_memory(process: psutil.Process) -> list[str]:
    """Return the shared memory files that `process` has mapped."""
    return [m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/")]


@pytest.mark.parametrize("engine", ["mpi", "horovod"])
def test_a_rank_that_raises_ends_the_job_and_its_traceback_comes_last(engine: str, tmp_path: Path) -> None:
    needs("mpirun")
    needs(engine)
    (tmp_path / "mine.py").write_text(falters("raise ValueError('seven is enough')"))
    (tmp_path / "m.yaml").write_text("model: {target: 'mine:Model'}\ndata: digits\n")
    began = time.monotonic()
    done = ddl("run", "--np", "2", "--engine", engine, "--output", "out", "m.yaml", cwd=tmp_path)
    assert time.monotonic() - began < 30
    assert done.returncode == 1, done.stderr
    tail = done.stderr[done.stderr.index("ddl: the first failure: rank 1 on") :]
    assert "Traceback" in tail
    assert "ValueError: seven is enough" in tail
    assert "mine.py" in tail
    record = json.loads((tmp_path / "out" / "errors" / "rank-1.json").read_text())
    assert record["message"] == "ValueError: seven is enough"
    assert "ValueError: seven is enough" in (tmp_path / "out" / "logs" / "rank-1.log").read_text()
    assert "MPI_ABORT" not in tail, "the launcher's own words belong nowhere near"
    assert "-----" not in tail


def test_a_loss_that_is_no_number_stops_every_rank_and_says_where(model: Path, tmp_path: Path) -> None:
    needs("mpirun")
    job = start("run", "--np", "2", "--output", "out", model, "optimizer.lr=1e300", cwd=tmp_path)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 3, errors
    assert re.search(r"rank [01] on \S+:\nthe loss became (nan|inf) at step \d+ \(epoch 1", errors), errors
    assert "Traceback" not in errors


def test_a_timeout_ends_the_job(model: Path, tmp_path: Path) -> None:
    needs("mpirun")
    job = start("run", "--np", "2", "--timeout", "8", "--output", "out", model, *ENDLESS, cwd=tmp_path)
    wait_for(tmp_path, "out/metrics.jsonl")
    processes = ranks(job.pid)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 124
    assert "--timeout 8 seconds" in errors
    assert alive(processes) == []


def test_a_script_and_a_module_run_on_every_rank(tmp_path: Path) -> None:
    needs("mpirun")
    text = "import sys\nfrom mpi4py import MPI\nprint('rank', MPI.COMM_WORLD.rank, sys.argv[1:])\n"
    (tmp_path / "hello.py").write_text(text)
    for how, tee in ((["hello.py"], "all"), (["-m", "hello"], "1")):
        done = ddl("run", "--np", "2", "--tee", tee, "--output", f"out {tee}", *how, "--", "--lr", "a b", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [f"rank {r} ['--lr', 'a b']" for r in (0, 1)]
        shown = [f"[{r}] {line}" for r, line in enumerate(lines)] if tee == "all" else lines[1:]
        assert sorted(done.stdout.splitlines()) == shown
        out = tmp_path / f"out {tee}"
        assert [(out / f"logs/rank-{r}.log").read_text() for r in (0, 1)] == [f"{line}\n" for line in lines]
        assert "/mpirun --" in (out / "command.txt").read_text()
        assert (summary(out)["ended"], summary(out)["world_size"]) == ("finished", 2)
        assert ("has the output of each rank" in done.stderr) == (tee == "1")
    assert not (tmp_path / "runs").exists()
    (row,) = json.loads(ddl("results", "out all", "--json", cwd=tmp_path).stdout)
    assert (row["ended"], row["seconds"] > 0) == ("finished", True)


def test_a_script_that_fails_on_one_rank_ends_the_job(tmp_path: Path) -> None:
    needs("mpirun")
    text = "from mpi4py import MPI\nw = MPI.COMM_WORLD\nif w.rank == 1:\n    raise KeyError('lost')\nw.Barrier()\n"
    (tmp_path / "bad.py").write_text(text)
    done = ddl("run", "--np", "2", "bad.py", cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    trace = f'Traceback (most recent call last):\n  File "{tmp_path}/bad.py", line 4, in <module>\n'
    assert re.search(rf"the first failure: rank 1 on \S+:\n{re.escape(trace)}", done.stderr), done.stderr
    assert "KeyError: 'lost'" in done.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert f"ddl: see {out}" in done.stderr
    assert (out / "logs" / "rank-1.log").read_text().startswith(trace)
    assert json.loads((out / "errors" / "rank-1.json").read_text())["message"] == "KeyError: 'lost'"
    assert (summary(out)["ended"], summary(out)["exit_code"]) == ("failure (exit code 1)", 1)
    refused = ddl("run", "--resume", "latest", "bad.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("ddl: --resume is for YAML files; a script reads its own checkpoints")
    assert len(list((tmp_path / "runs").iterdir())) == 1


STOPS_AT_EXIT = """\
import atexit, os, signal
from torch import nn

def model():
    if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        atexit.register(os.kill, os.getpid(), signal.SIGSTOP)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_a_rank_that_is_done_and_does_not_leave_ends_with_the_run(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "stops.py").write_text(STOPS_AT_EXIT)
    (tmp_path / "m.yaml").write_text(SMALL)
    told = ["--np", "2", "--stall-timeout", "5", "--output", "out", "m.yaml", "model={target: 'stops:model'}"]
    done = ddl("run", *told, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "out")["ended"] == "length"


def test_a_rank_alone_in_its_world_says_so(tmp_path: Path) -> None:
    """The mpirun of another MPI starts N worlds of one rank each."""
    needs("mpirun")
    printed = ddl_here("run", "--np", "2", "--output", "out", "--dry-run", DIGITS, cwd=tmp_path).stdout
    program = printed[printed.index(sys.executable) :]
    before = set(Path("/dev/shm").iterdir())
    # Without mpirun, a process of Open MPI 5.0.11 leaves 16 MB in /dev/shm unless shared memory is
    # off.
    environment = {**os.environ, "OMPI_MCA_btl": "self"}
    alone = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 2
    assert "this rank sees a world of 1, not of 2" in alone.stderr
    assert not (tmp_path / "out").exists()
    assert set(Path("/dev/shm").iterdir()) <= before
