"""What the doctor found, as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from cli.columns import columns
from cli.diagnose._places import load
from cli.diagnose.base import Finding, Level, Line
from hvd_train import strict_json

_COLORS: dict[Level, str] = {"ok": "green", "warning": "yellow", "error": "red"}


def text(line: Line, *, named: bool = False) -> str:
    """One line; `named` says that the host belongs in it."""
    found = line.finding
    level = typer.style(f"{found.level:8}", fg=_COLORS[found.level])
    where = f"{line.host}  " if named else ""
    return f"{level} {line.check:12} {where}{found.figure}{f'  -> {found.remedy}' if found.remedy else ''}"


def to_json(lines: Sequence[Line]) -> str:
    levels = [line.finding.level for line in lines]
    findings: list[dict[str, Any]] = [{"host": x.host, "check": x.check, **asdict(x.finding)} for x in lines]
    counts = {"errors": levels.count("error"), "warnings": levels.count("warning")}
    return strict_json.dumps({"ok": not counts["errors"], **counts, "findings": findings}, indent=1)


def table(hosts: Mapping[str, Mapping[str, Finding]]) -> str:
    """A row for each host: whether it was reached, and what must be the same on all of them."""
    facts = [(check, fact) for check in _checks(hosts) for fact in load(check).alike]
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
