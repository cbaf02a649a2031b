"""Where checks look: this machine, or a host over ssh, which needs nothing but the same ddl at the same path."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cli import ssh
from cli.diagnose.base import Check, Finding, Wanted
from cli.hosts import Host
from cli.machine import Machine
from hvd_train import internal, plugins
from hvd_train.errors import UserError

HOST_SECONDS = 60
"""How long a host may take for all of its checks."""


@dataclass(frozen=True)
class Here:
    @property
    def name(self) -> str:
        return os.uname().nodename

    def examine(self, wanted: Wanted) -> dict[str, Finding]:
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            return dict(zip(wanted, pool.map(_examine, map(load, wanted, wanted.values())), strict=True))


def survey(
    hosts: Sequence[Host], wanted: Wanted, here: dict[str, Finding], client: ssh.Client = ssh.PLAIN
) -> dict[str, dict[str, Finding]]:
    """Findings by host; for a host that is this machine, those that are `here`."""
    machine = Machine.here()
    others = [host.name for host in machine.others(hosts)]
    answers = client.ask_all(others, internal.argv("cli.diagnose", json.dumps(wanted)), HOST_SECONDS)
    found = {answer.host: _findings(answer) for answer in answers}
    return {host.name: found.get(host.name, here) for host in hosts}


def load(name: str, options: Mapping[str, Any] | None = None) -> Check:
    check: Check = plugins.create("cli.diagnose", name, **(options or {}))
    return check


def _findings(answer: ssh.Answer) -> dict[str, Finding]:
    if answer.problem:
        return {"reach": Finding("error", answer.problem, answer.remedy)}
    return {"reach": Finding("ok", "over ssh"), **{name: Finding(**found) for name, found in answer.json.items()}}


def _examine(check: Check) -> Finding:
    """A mistake in the form of `what; what to do` is a finding."""
    try:
        return check.examine()
    except UserError as error:
        figure, _, remedy = str(error).partition("; ")
        return Finding("error", figure, remedy)
    except OSError as error:
        return Finding("error", f"could not be looked at: {error}")
