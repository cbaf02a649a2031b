"""Runs checks on this machine, and over ssh on other hosts.

A host needs the same ddl at the same path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cli.doctor.base import Check, Finding, Selection
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.remote import ssh
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.rank import internal

HOST_SECONDS = 60
"""Timeout of all checks of a host."""


def examine(selection: Selection) -> dict[str, Finding]:
    """Run the checks on this machine in parallel and return the findings by check."""
    with ThreadPoolExecutor(max(1, len(selection))) as pool:
        return dict(zip(selection, pool.map(_run, map(load, selection, selection.values())), strict=True))


def examine_hosts(
    hosts: Sequence[Host], selection: Selection, here: dict[str, Finding], client: ssh.Client = ssh.PLAIN
) -> dict[str, dict[str, Finding]]:
    """Run the checks on all hosts and return the findings by host.

    `here` are the findings of this machine.
    """
    machine = Machine.here()
    others = [host.name for host in machine.others(hosts)]
    answers = client.ask_all(others, internal.argv("cli.doctor", json.dumps(selection)), HOST_SECONDS)
    found = {answer.host: _findings(answer) for answer in answers}
    return {host.name: found.get(host.name, here) for host in hosts}


def load(name: str, options: Mapping[str, Any] | None = None) -> Check:
    """Create the check `name`."""
    check: Check = plugins.create("cli.doctor.checks", name, **(options or {}))
    return check


def _findings(answer: ssh.Answer) -> dict[str, Finding]:
    if answer.problem:
        return {"reach": Finding("error", answer.problem, answer.remedy)}
    return {"reach": Finding("ok", "over ssh"), **{name: Finding(**found) for name, found in answer.json.items()}}


def _run(check: Check) -> Finding:
    """Return the finding. The text of a UserError has the form `figure; remedy`."""
    try:
        return check.examine()
    except UserError as error:
        figure, _, remedy = str(error).partition("; ")
        return Finding("error", figure, remedy)
    except OSError as error:
        return Finding("error", f"could not be examined: {error}")
