"""The options of `ddl compare`, as the overrides of each run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.runs.sweep import items
from hvd_train.config import document, plugins
from hvd_train.config.resolve import expand
from hvd_train.config.schema import Config
from hvd_train.errors import UserError
from hvd_train.text.names import match

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(epochs?|env_steps|steps?|s|kB|MB|GB)")
_LENGTHS = ("steps", "env_steps", "epochs")
_UNLIMITED = 10**9
_KEPT = ("compression", "fusion_mb")
"""Fields of `sync` that all strategies share. Every strategy keeps the file's value unless it
overrides it."""


@dataclass(frozen=True)
class StrategyEntry:
    """One strategy of `--strategies` with its options, such as `local_sgd:period=8`.

    `text` is the original text.
    """

    text: str
    name: str
    options: tuple[str, ...]

    @property
    def title(self) -> str:
        return " ".join([self.name, *self.options])

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=-]+", "-", self.text).strip("-")

    def overrides(self, sync: dict[str, object]) -> list[str]:
        """Return the overrides of `ddl run`, given the file's section `sync`.

        An option without a section name, such as `period=8`, belongs to `sync`.
        """
        kept = {word: sync[word] for word in _KEPT if word in sync}
        whole = f"sync={json.dumps({**kept, 'strategy': self.name})}"
        return [whole, *(o if _has_section(o) else f"sync.{o}" for o in self.options)]


def entries(text: str) -> list[StrategyEntry]:
    """Parse a list such as `allreduce,local_sgd:period=8,diloco:period=50:outer_lr=0.7`."""
    parsed = [_entry(part, text) for part in items(text, ",")]
    titles = [entry.title for entry in parsed]
    repeated = next((entry.text for entry in parsed if titles.count(entry.title) > 1), None)
    if repeated is not None:
        raise UserError(f"--strategies: '{repeated}' is listed twice; remove one or give it other options")
    return parsed


def budget(text: str) -> list[str]:
    """Return the overrides that end a run after `10epochs`, `500steps`, `20000env_steps`, `60s` or `2GB`."""
    match = _BUDGET.fullmatch(text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0:
        raise UserError(
            f"--budget: '{text}' is no budget; expected epochs, steps, env_steps, seconds or bytes, such as 10epochs, "
            "500steps, 20000env_steps, 60s, 2GB"
        )
    unit = match[2]
    if unit == "s":
        return [*_length("epochs", _UNLIMITED), f"train.max_seconds={number}"]
    if unit in UNITS:
        return [*_length("epochs", _UNLIMITED), f"train.max_bytes={round(number * UNITS[unit])}"]
    if number != int(number):
        raise UserError(f"--budget: '{text}' is not whole; expected a whole number of epochs or steps")
    return _length(f"{unit.removesuffix('s')}s", int(number))


def _length(word: str, number: int) -> list[str]:
    """Return the overrides that set the length `word`, and no other one."""
    return [*(f"train.{other}=null" for other in _LENGTHS if other != word), f"train.{word}={number}"]


def goal(text: str, where: str = "--target") -> tuple[str, float]:
    """Return the metric and the value of a text such as `accuracy=0.95`; UserError begins with `where`."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise UserError(f"{where}: '{text}' is no goal; expected METRIC=VALUE, such as accuracy=0.95")
    return name, value


def file_sync(file: Path, overrides: Sequence[str]) -> dict[str, object]:
    """Return the section `sync` of the file with `overrides` applied."""
    source = document.read(file)
    source.values = expand(Config, source.values)
    for assignment in overrides:
        source.override(assignment)
    section = expand(Config, source.values).get("sync") or {}
    return dict(section)


def _entry(part: str, text: str) -> StrategyEntry:
    name, *options = items(part, ":")
    wrong = next((o for o in options if not o.partition("=")[2] or o.startswith("=")), None)
    if not name or wrong is not None:
        raise UserError(
            f"--strategies: '{part if name else text}' is no strategy; expected NAME or NAME:OPTION=VALUE:OPTION=VALUE, "
            "separated by commas, such as allreduce,local_sgd:period=8"
        )
    return StrategyEntry(part, match(name, plugins.names(plugins.FAMILIES["strategies"])) or name, tuple(options))


def _has_section(option: str) -> bool:
    section, dot, _ = option.partition("=")[0].partition(".")
    return section == "seed" or (bool(dot) and section in Config.model_fields)
