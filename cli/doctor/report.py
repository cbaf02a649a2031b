"""The findings as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from cli.doctor.base import Finding, Level, Row
from cli.doctor.examine import load
from cli.output.columns import columns
from hvd_train.text import strict_json

_COLORS: dict[Level, str] = {"ok": "green", "warning": "yellow", "error": "red"}


def text(line: Row, *, named: bool = False) -> str:
    """Return a finding as one line. With `named` it includes the host."""
    found = line.finding
    level = typer.style(f"{found.level:8}", fg=_COLORS[found.level])
    where = f"{line.host}  " if named else ""
    return f"{level} {line.check:12} {where}{found.figure}{f'  -> {found.remedy}' if found.remedy else ''}"


def to_json(lines: Sequence[Row]) -> str:
    levels = [line.finding.level for line in lines]
    findings: list[dict[str, Any]] = [{"host": x.host, "check": x.check, **asdict(x.finding)} for x in lines]
    counts = {"errors": levels.count("error"), "warnings": levels.count("warning")}
    return strict_json.dumps({"ok": not counts["errors"], **counts, "findings": findings}, indent=1)


def table(hosts: Mapping[str, Mapping[str, Finding]]) -> str:
    """Return one row per host: if it was reached, and the facts that must be equal on all hosts."""
    facts = [(check, fact) for check in _checks(hosts) for fact in load(check).identical]
    rows = [["host", "reached", *(fact for _, fact in facts)]]
    for host, found in hosts.items():
        reached = "no" if "reach" in found and found["reach"].level == "error" else "yes"
        rows.append([host, reached, *(_fact(found, *fact) for fact in facts)])
    return columns(rows)


def _checks(hosts: Mapping[str, Mapping[str, Finding]]) -> list[str]:
    return sorted({check for found in hosts.values() for check in found} - {"reach"})


def _fact(found: Mapping[str, Finding], check: str, fact: str) -> str:
    value = found[check].facts.get(fact) if check in found else None
    return "-" if value is None else str(value)
