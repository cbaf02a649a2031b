"""Comparison of the findings of all hosts: facts that must be equal, facts that must differ."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping

from cli.doctor.base import Finding, Row
from cli.doctor.examine import load

Findings = Mapping[str, Finding]
"""The findings of one host, by the name of the check."""

_PACKAGES = {"torch", "mpi4py"}


def lines(found: Mapping[str, Findings], here: Findings) -> list[Row]:
    """Return every finding of every other host, then the conflicts between hosts."""
    others = ((host, findings) for host, findings in found.items() if findings is not here)
    own = [Row(host, check, finding) for host, findings in others for check, finding in findings.items()]
    return own + conflicts(found, here)


def conflicts(found: Mapping[str, Findings], here: Findings) -> list[Row]:
    """Return a line for each fact that must be equal and differs, or must differ and is equal."""
    wrong = []
    for check in here:
        rules = load(check)
        by_host = {host: findings[check] for host, findings in found.items() if check in findings}
        for host, there in by_host.items():
            wrong += [Row(host, check, f) for f in _differing(host, rules.identical, here[check], there)]
        for fact, remedy in rules.distinct.items():
            wrong += [Row(host, check, f) for host, f in _repeated(fact, by_host, remedy)]
    return wrong


def _differing(host: str, facts: tuple[str, ...], here: Finding, there: Finding) -> list[Finding]:
    return [
        Finding("error", f"{fact} is {_named(there, fact)}, and {_named(here, fact)} here", _align(fact, here, host))
        for fact in facts
        if fact in here.facts and fact in there.facts and here.facts[fact] != there.facts[fact]
    ]


def _named(finding: Finding, fact: str) -> str:
    return str(finding.facts[fact] or "missing")


def _align(fact: str, here: Finding, host: str) -> str:
    if fact == "horovod":
        return f"on {host}: scripts/install-horovod {sys.executable}"
    if fact in _PACKAGES:
        return f"ssh {host} {sys.executable} -m pip install {fact}=={here.facts[fact].partition('+')[0]}"
    return f"copy this machine's environment to the same path on {host}: {sys.prefix}"


def _repeated(fact: str, findings: Findings, remedy: str) -> list[tuple[str, Finding]]:
    owners: dict[str, list[str]] = defaultdict(list)
    for host, finding in findings.items():
        for value in finding.facts.get(fact, ()):
            owners[value].append(host)
    return [
        (
            hosts[1],
            Finding(
                "warning",
                f"{value} ({fact}) is an address of {hosts[0]} too: MPI may connect to the wrong host",
                remedy,
            ),
        )
        for value, hosts in owners.items()
        if len(hosts) > 1
    ]
