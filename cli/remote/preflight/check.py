"""Ask all hosts at the same time whether a job can run there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.hosts.hostfile import Host
from cli.hosts.network import Network
from cli.remote import forwarded, ssh
from cli.remote.preflight.compare import Facts, HostProblem, clashes, namesakes, problems, skew, table
from hvd_train.errors import UserError
from hvd_train.rank import internal

SECONDS = 30.0
"""Seconds that a host has to answer.

More than `ssh.AT_ONCE` hosts are asked in turns, each with this limit.
"""
SHOWN = 20
"""Most problems in the table of a refusal."""

_PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Needs:
    """What a job in `folder` needs on every host.

    It needs equal `files`, existing `paths`, and free space in the folders `room`.
    """

    folder: Path
    files: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    room: tuple[str, ...] = ("/dev/shm", "/tmp")

    def argv(self) -> list[str]:
        """Return the command that answers with the facts of a host (`probe`)."""
        wanted = {
            "folder": str(self.folder),
            "root": internal.ROOT,
            "files": self.files,
            "paths": self.paths,
            "room": self.room,
            "variables": [*forwarded.NAMES, *forwarded.PREFIXES],
        }
        return [sys.executable, "-c", _PROBE.read_text(encoding="utf-8"), json.dumps(wanted)]


def check(
    hosts: Sequence[Host],
    needs: Needs,
    network: Network | None,
    seconds: float = SECONDS,
    client: ssh.Client = ssh.PLAIN,
) -> list[HostProblem]:
    """Return the warnings about the other hosts of a job.

    UserError if a host cannot run it, with a table of all problems and the first remedy.
    """
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(_here, needs)
        answers = client.ask_all([host.name for host in hosts], needs.argv(), seconds)
        found = _judge(hosts, answers, own.result(), network)
    if any(problem.level == "error" for problem in found):
        raise UserError(_refusal(found, len(hosts)))
    return found


def _judge(
    hosts: Sequence[Host], answers: Sequence[ssh.Answer], here: Facts, network: Network | None
) -> list[HostProblem]:
    """Return the problems of each host, then the problems between hosts."""
    found = [HostProblem("error", answer.host, answer.problem, answer.remedy) for answer in answers if answer.problem]
    facts = {answer.host: _facts(answer) for answer in answers if not answer.problem}
    for host in hosts:
        if host.name in facts:
            found += problems(here, facts[host.name], host.name, host.slots, network)
    by_host = {"this machine": here, **facts}
    return [*found, *namesakes(by_host), *clashes(by_host, network)]


def _facts(answer: ssh.Answer) -> dict[str, Any]:
    facts = answer.json
    return {**facts, "skew": skew(facts["time"], answer.began, answer.ended)}


def _here(needs: Needs) -> Facts:
    done = subprocess.run(needs.argv(), capture_output=True, text=True, timeout=SECONDS, check=True)
    return _facts(ssh.Answer("", ssh.unframed(done.stdout), ended=math.inf))


def _refusal(found: Sequence[HostProblem], hosts: int) -> str:
    errors = [problem for problem in found if problem.level == "error"]
    failing = len({problem.host for problem in errors})
    first = errors[0]
    more = f"\n  ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"preflight: {failing} of {hosts} other hosts cannot run this job (--no-preflight skips this)\n"
        f"{table(found[:SHOWN])}{more}\n"
        f"first, on {first.host}: {first.remedy}"
    )
