"""`horovod.run(function, np=2)`: call a function on every rank of a job, as from a notebook.

`ddl run` starts the job. The function and its results are pickled with cloudpickle. The caller and
rank 0 exchange them through a temporary folder that only this user can read, ranks through MPI.
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

from hvd_train.rank import internal

CALL, RESULTS = "call", "results"
"""Names of the files in the folder."""
_OF_A_RANK = ("OMPI_COMM_", "OMPI_DDL_", "OMPI_UNIVERSE_", "PMIX_", "PMI_", "PRTE_", "HYDRA_")
"""Prefixes of the variables that make a process a rank. A rank that starts a job removes them."""
_WORLD_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_GRACE = 15.0
"""Seconds that `ddl run` has to end its ranks after the caller was interrupted."""


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
    """Call `func(*args, **kwargs)` on `num_proc` ranks and return their results in rank order.

    `np` is another name of `num_proc`. The first of `hosts`, or of `hostfile`, must be this
    machine. Ranks always use MPI, even with `use_gloo`. `start_timeout` and `disable_cache` have no
    effect. ValueError for options that ddl does not support. RuntimeError with the first failure if
    the job fails.
    """
    refused = {
        "min_num_proc": min_num_proc or min_np, "max_num_proc": max_num_proc or max_np, "slots": slots,
        "reset_limit": reset_limit, "cooldown_range": cooldown_range, "host_discovery_script": host_discovery_script,
        "output_filename": output_filename, "executable": executable,
    }  # fmt: skip
    _check({name for name, value in refused.items() if value}, hosts and hostfile, use_gloo and use_mpi)
    ranks = num_proc if np is None else np
    interfaces = list(network_interfaces or (network_interface or "").split(","))
    file = os.path.abspath(hostfile) if hostfile else None
    ssh = [word for pair in (("-p", ssh_port), ("-i", ssh_identity_file)) if pair[1] for word in map(str, pair)]
    options = {
        "--hosts": hosts, "--hostfile": file, "--iface": interfaces[0], "--ssh-args": shlex.join(ssh),
        "--launcher-args": mpi_args,
    }  # fmt: skip
    command = internal.argv("cli", "run", "--np", str(ranks), "--engine", "mpi", "--output", os.devnull, "--tee", "all")
    command += [word for option, value in options.items() if value for word in (option, str(value))]
    command += ["--verbose"] if verbose else []
    return _call(command, (func, tuple(args), dict(kwargs or {})))


def _call(command: Sequence[str], call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    """Have the ranks of the job that `command` starts make `call`; return their results."""
    with tempfile.TemporaryDirectory(prefix="ddl-call-") as folder:
        Path(folder, CALL).write_bytes(pickle.dumps((os.getcwd(), sys.path, cloudpickle.dumps(call))))
        _follow([*command, "-m", "hvd_train.rank.horovod_call", "--", folder])
        results: list[bytes] = pickle.loads(Path(folder, RESULTS).read_bytes())
    return [pickle.loads(result) for result in results]


def _check(refused: set[str], two_hosts: object, two_controllers: object) -> None:
    if two_hosts:
        raise ValueError("horovod.run: hosts and hostfile are both given; give one of them")
    if two_controllers:
        raise ValueError("horovod.run: use_gloo and use_mpi are both given; give one of them")
    if refused:
        raise ValueError(
            f"horovod.run: ddl's own engine does not support {', '.join(sorted(refused))}; leave it out, or put the "
            "function into a script and start it with ddl run (see ddl run --help)"
        )
    size = next((int(os.environ[name]) for name in _WORLD_SIZE if name in os.environ), 1)
    if size > 1:
        raise RuntimeError(
            f"horovod.run: this process is one of {size} ranks, and each would start a job; call the function directly, "
            "or start the script as one process"
        )


def _follow(command: list[str]) -> None:
    """Run `command` and copy its output to sys.stdout and sys.stderr, which a notebook shows."""
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
    """Return the output from the first failure on, or else from the last message of ddl."""
    messages = [i for i, line in enumerate(errors) if line.startswith("ddl: ")]
    first = next((i for i in messages if "first failure" in errors[i]), messages[-1] if messages else 0)
    return "".join(errors[first:]).rstrip()
