"""The hosts of a job, beside one another: what must be the same on all of them, and what must not."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping

from cli.diagnose._places import load
from cli.diagnose.base import Finding, Line

Findings = Mapping[str, Finding]
"""Findings of one place, by the name of the check."""

_PACKAGES = {"torch", "mpi4py"}


def lines(found: Mapping[str, Findings], here: Findings) -> list[Line]:
    """Every finding of every host that is not this machine, then what is wrong between hosts."""
    elsewhere = ((host, findings) for host, findings in found.items() if findings is not here)
    own = [Line(host, check, finding) for host, findings in elsewhere for check, finding in findings.items()]
    return own + compare(found, here)


def compare(found: Mapping[str, Findings], here: Findings) -> list[Line]:
    """A line for every fact in which a host wrongly differs from this machine, or two hosts wrongly agree."""
    different = []
    for check in here:
        rules = load(check)
        looked = {host: findings[check] for host, findings in found.items() if check in findings}
        for host, there in looked.items():
            different += [Line(host, check, f) for f in _unlike(host, rules.alike, here[check], there)]
        for fact, remedy in rules.distinct.items():
            different += [Line(host, check, f) for host, f in _shared(fact, looked, remedy)]
    return different


def _unlike(host: str, facts: tuple[str, ...], here: Finding, there: Finding) -> list[Finding]:
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


def _shared(fact: str, findings: Findings, remedy: str) -> list[tuple[str, Finding]]:
    owners: dict[str, list[str]] = defaultdict(list)
    for host, finding in findings.items():
        for value in finding.facts.get(fact, ()):
            owners[value].append(host)
    return [
        (
            hosts[1],
            Finding(
                "warning", f"{value} ({fact}) is an address of {hosts[0]} too: MPI takes it for a way there", remedy
            ),
        )
        for value, hosts in owners.items()
        if len(hosts) > 1
    ]
