"""`horovod.run(function, np=2)`: call a function on every rank of a job that `ddl run` starts, as from a notebook.

The function and its results travel by cloudpickle: between the caller and rank 0 through a folder that only this user
can read, which is gone afterwards, and between ranks by MPI.
"""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import cloudpickle

from hvd_train import internal

CALL, RESULTS = "call", "results"
"""Files in the folder."""
_OF_A_RANK = ("OMPI_COMM_", "OMPI_DDL_", "OMPI_UNIVERSE_", "PMIX_", "PMI_", "PRTE_", "HYDRA_")
"""Prefixes of the variables by which a process is a rank: one that runs a job starts a world of its own."""
_WORLD_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_GRACE = 15.0
"""Seconds that `ddl run` has to end its ranks when the caller is interrupted."""


def run(
    func: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, num_proc: int = 1,
    min_num_proc: int | None = None, max_num_proc: int | None = None, slots: int | None = None,
    reset_limit: int | None = None, cooldown_range: Any = None, hosts: str | None = None, hostfile: str | None = None,
    host_discovery_script: str | None = None, start_timeout: int | None = None, ssh_port: int | None = None,
    ssh_identity_file: str | None = None, disable_cache: bool | None = None, output_filename: str | None = None,
    verbose: int | bool | None = None, use_gloo: bool | None = None, use_mpi: bool | None = None,
    mpi_args: str | None = None, network_interface: str | None = None,
    network_interfaces: Iterable[str] | None = None, executable: str | None = None, np: int | None = None,
    min_np: int | None = None, max_np: int | None = None,
) -> list[Any]:  # fmt: skip
    """Call `func(*args, **kwargs)` on `num_proc` ranks; what each returned, in rank order.

    `np` is another name of `num_proc`. With `hosts` or `hostfile`, this machine is the first of them. Ranks use MPI, whatever
    `use_gloo` says; `start_timeout` and `disable_cache` change nothing.
    ValueError for options that ddl has no counterpart of; RuntimeError, with the first failure, where the job fails.
    """
    refused = {
        "min_num_proc": min_num_proc or min_np, "max_num_proc": max_num_proc or max_np, "slots": slots,
        "reset_limit": reset_limit, "cooldown_range": cooldown_range, "host_discovery_script": host_discovery_script,
        "output_filename": output_filename, "executable": executable,
    }  # fmt: skip
    _check({name for name, value in refused.items() if value}, hosts and hostfile, use_gloo and use_mpi)
    interfaces = list(network_interfaces or (network_interface or "").split(","))
    file = os.path.abspath(hostfile) if hostfile else None
    ssh = [word for pair in (("-p", ssh_port), ("-i", ssh_identity_file)) if pair[1] for word in map(str, pair)]
    options = {
        "--hosts": hosts, "--hostfile": file, "--iface": interfaces[0], "--ssh-args": shlex.join(ssh),
        "--launcher-args": mpi_args,
    }  # fmt: skip
    command = internal.argv("cli", "run", "--np", str(num_proc if np is None else np), "--engine", "mpi")
    command += [word for option, value in options.items() if value for word in (option, str(value))]
    command += ["--output", os.devnull, "--tee", "all"]
    command += ["--verbose"] if verbose else []
    with tempfile.TemporaryDirectory(prefix="ddl-call-") as folder:
        call = cloudpickle.dumps((func, tuple(args), dict(kwargs or {})))
        Path(folder, CALL).write_bytes(pickle.dumps((os.getcwd(), sys.path, call)))
        _follow([*command, "-m", "hvd_train.horovod_call", "--", folder])
        results: list[bytes] = pickle.loads(Path(folder, RESULTS).read_bytes())
    return [pickle.loads(result) for result in results]


def _check(refused: set[str], two_hosts: object, two_controllers: object) -> None:
    if two_hosts:
        raise ValueError("horovod.run: hosts and hostfile both say where to run; give one of them")
    if two_controllers:
        raise ValueError("horovod.run: use_gloo and use_mpi are both given; give one of them")
    if refused:
        raise ValueError(
            f"horovod.run: ddl's own engine has no {', '.join(sorted(refused))}; leave it out, or write the function "
            "into a script and start that with ddl run, whose options ddl run --help lists"
        )
    size = next((int(os.environ[name]) for name in _WORLD_SIZE if name in os.environ), 1)
    if size > 1:
        raise RuntimeError(
            f"horovod.run: this is already one of {size} ranks, and each would start a job; call the function itself, "
            "or start the script as one process"
        )


def _follow(command: list[str]) -> None:
    """Run `command`, its output in this process's sys.stdout and sys.stderr, which a notebook shows."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_RANK)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    pumps = [
        threading.Thread(target=_pump, args=(process.stdout, sys.stdout, []), daemon=True),
        threading.Thread(target=_pump, args=(process.stderr, sys.stderr, errors), daemon=True),
    ]
    for pump in pumps:
        pump.start()
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        for pump in pumps:
            pump.join()
    if code:
        raise RuntimeError(f"horovod.run: the job failed with exit code {code}\n{_cause(errors)}")


def _pump(source: IO[bytes], sink: Any, kept: list[str]) -> None:
    for line in source:
        text = line.decode(errors="replace")
        kept.append(text)
        sink.write(text)
        sink.flush()


def _cause(errors: Sequence[str]) -> str:
    """From the last thing on that ddl itself said."""
    said = [i for i, line in enumerate(errors) if line.startswith("ddl: ")]
    first = next((i for i in said if "first failure" in errors[i]), said[-1] if said else 0)
    return "".join(errors[first:]).rstrip()
