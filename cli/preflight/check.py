"""Before the first rank starts: every host is asked, at the same time, whether the job can run there."""

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

from cli import forwarded, ssh
from cli.hosts import Host
from cli.network import Network
from cli.preflight.compare import Facts, Problem, clashes, namesakes, problems, skew, table
from hvd_train import internal
from hvd_train.errors import UserError

SECONDS = 30.0
"""How long a host may take to answer; of more than `ssh.AT_ONCE`, as long again for each lot."""
SHOWN = 20

_PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Needs:
    """What a job needs on every host: the same `files`, these `paths`, and room in these folders."""

    folder: Path
    files: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    room: tuple[str, ...] = ("/dev/shm", "/tmp")

    def argv(self) -> list[str]:
        wanted = {
            "folder": str(self.folder),
            "root": str(Path(internal.HERE).parent),
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
) -> list[Problem]:
    """Warnings about the other hosts of a job; UserError has a table of all that is wrong, and the first thing to mend."""
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(_here, needs)
        answers = client.ask_all([host.name for host in hosts], needs.argv(), seconds)
        found = _judge(hosts, answers, own.result(), network)
    if any(problem.level == "error" for problem in found):
        raise UserError(_refusal(found, len(hosts)))
    return found


def _judge(hosts: Sequence[Host], answers: Sequence[ssh.Answer], here: Facts, network: Network | None) -> list[Problem]:
    found = [Problem("error", answer.host, answer.problem, answer.remedy) for answer in answers if answer.problem]
    facts = {answer.host: _facts(answer) for answer in answers if not answer.problem}
    for host in hosts:
        if host.name in facts:
            found += problems(here, facts[host.name], host.name, host.slots, network)
    all_ = {"this machine": here, **facts}
    return [*found, *namesakes(all_), *clashes(all_, network)]


def _facts(answer: ssh.Answer) -> dict[str, Any]:
    facts = answer.json
    return {**facts, "skew": skew(facts["time"], answer.began, answer.ended)}


def _here(needs: Needs) -> Facts:
    done = subprocess.run(needs.argv(), capture_output=True, text=True, timeout=SECONDS, check=True)
    return _facts(ssh.Answer("", ssh.unframed(done.stdout), ended=math.inf))


def _refusal(found: Sequence[Problem], hosts: int) -> str:
    errors = [problem for problem in found if problem.level == "error"]
    ill = len({problem.host for problem in errors})
    first = errors[0]
    more = f"\n  ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"preflight: {ill} of {hosts} other hosts cannot run this job (--no-preflight skips this)\n"
        f"{table(found[:SHOWN])}{more}\n"
        f"first, on {first.host}: {first.remedy}"
    )
