"""The process of one job of `ddl tune --warm`: it starts the ranks and follows them.

The launcher shares the standard input of this process, so requests go straight to rank 0
(`hvd_train/rank/pool.py`). Standard output has one JSON object a line: `{"run": N, "code": CODE,
"message": TEXT}` for the end of a run, and the same without `run` for the end of the job. SIGQUIT
ends the job at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, NoReturn

from cli.follow.follower import follow
from cli.follow.supervisor import Limits
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.launch.choose import launch_command
from cli.launch.job import Job
from cli.launch.target import RANK, Target
from cli.output.streams import say
from cli.remote.preflight.start import require_ready
from cli.remote.reach import reach
from hvd_train.errors import ExitCode, UserError
from hvd_train.text import strict_json

STALL_SECONDS = 300
_STDIN = 0


@dataclass(frozen=True)
class PoolJob:
    """The job of a pool: where its ranks run, as `Job` and `Reach` have it."""

    np: int
    engine: str
    hosts: tuple[Host, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    iface: str | None = None
    ssh_args: str | None = None

    def dump(self) -> str:
        return strict_json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> PoolJob:
        """Return the job that `dump` returned."""
        values = strict_json.loads_exact(text)
        hosts = tuple(Host(**host) for host in values.pop("hosts"))
        return cls(hosts=hosts, variables=tuple(map(tuple, values.pop("variables"))), **values)


class _Killed(Exception):
    """SIGQUIT arrived."""


def main() -> None:
    """Run the job that the first argument describes."""
    signal.signal(signal.SIGQUIT, _kill)
    answers = os.dup(1)
    os.dup2(2, 1)  # what ranks and ssh print belongs in the log
    try:
        code, message = _run(PoolJob.parse(sys.argv[1]), answers)
    except UserError as error:
        code, message = int(ExitCode.BAD_INPUT), str(error)
        say(error)
    except _Killed:
        code, message = 128 + signal.SIGKILL, "killed"
    _answer(answers, {"code": code, "message": message})


def _run(pool: PoolJob, answers: int) -> tuple[int, str]:
    reached = reach(pool.hosts, Machine.here(), iface=pool.iface, ssh_args=pool.ssh_args)
    target = Target((*RANK, "--pool", pool.engine, str(pool.np)))
    variables = dict(pool.variables)
    job = Job(
        hosts=pool.hosts,
        program=target.program,
        world_size=pool.np,
        engine=pool.engine,
        environment=variables,
        bind="none" if variables and pool.engine != "single" else None,
    )
    command = launch_command("auto", reached.onto(job))
    require_ready(reached, target)
    result = follow(
        command,
        pool.np,
        reach=reached,
        limits=Limits(stall_timeout=STALL_SECONDS),
        stdin=_STDIN,
        run_ended=lambda event: _answer(answers, {name: event[name] for name in ("run", "code", "message")}),
    )
    return result.code, result.reason


def _answer(descriptor: int, answer: Mapping[str, Any]) -> None:
    os.write(descriptor, f"{strict_json.dumps(answer)}\n".encode())


def _kill(number: int, frame: FrameType | None) -> NoReturn:
    raise _Killed


if __name__ == "__main__":
    main()
