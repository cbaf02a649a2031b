"""What `ddl compare` is asked for, as the overrides of each run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.slurm.sweep import items
from hvd_train import document, plugins
from hvd_train.config import Config, expand
from hvd_train.errors import UserError
from hvd_train.names import match

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(epochs?|steps?|s|kB|MB|GB)")
_UNLIMITED = 10**9
_KEPT = ("compression", "fusion_mb")
"""Fields of `sync` that all strategies have: those of the file are every strategy's, unless it has its own."""


@dataclass(frozen=True)
class Entry:
    """One of the strategies, as it was written: its name and options, `local_sgd:period=8`."""

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
        """For `ddl run`, where the file's section `sync` is this; an option with a section in front is of that one."""
        kept = {word: sync[word] for word in _KEPT if word in sync}
        whole = f"sync={json.dumps({**kept, 'strategy': self.name})}"
        return [whole, *(o if _has_section(o) else f"sync.{o}" for o in self.options)]


def entries(text: str) -> list[Entry]:
    """The strategies of `allreduce,local_sgd:period=8,diloco:period=50:outer_lr=0.7`."""
    found = [_entry(part, text) for part in items(text, ",")]
    titles = [e.title for e in found]
    twice = next((e.text for e in found if titles.count(e.title) > 1), None)
    if twice is not None:
        raise UserError(f"--strategies: '{twice}' stands there twice")
    return found


def budget(text: str) -> list[str]:
    """Overrides that end a run after `10epochs`, `500steps`, `60s` or `2GB`."""
    match = _BUDGET.fullmatch(text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0:
        raise UserError(
            f"--budget: '{text}' is none; expected epochs, steps, seconds or bytes: 10epochs, 500steps, 60s, 2GB"
        )
    unit = match[2]
    if unit == "s":
        return ["train.steps=null", f"train.epochs={_UNLIMITED}", f"train.max_seconds={number}"]
    if unit in UNITS:
        return ["train.steps=null", f"train.epochs={_UNLIMITED}", f"train.max_bytes={round(number * UNITS[unit])}"]
    if number != int(number):
        raise UserError(f"--budget: '{text}' has a fraction; expected whole epochs or steps")
    word, other = ("epochs", "steps") if unit.startswith("epoch") else ("steps", "epochs")
    return [f"train.{other}=null", f"train.{word}={int(number)}"]


def target(text: str) -> tuple[str, float]:
    """The metric and the value of `accuracy=0.95`."""
    name, _, value = text.partition("=")
    try:
        goal = float(value)
    except ValueError:
        goal = math.nan
    if not name or not math.isfinite(goal):
        raise UserError(f"--target: '{text}' is none; expected METRIC=VALUE, as accuracy=0.95")
    return name, goal


def file_sync(file: Path, overrides: Sequence[str]) -> dict[str, object]:
    """The section `sync` that the file and `overrides` have."""
    source = document.read(file)
    source.values = expand(Config, source.values)
    for assignment in overrides:
        source.override(assignment)
    section = expand(Config, source.values).get("sync") or {}
    return dict(section)


def _entry(part: str, text: str) -> Entry:
    name, *options = items(part, ":")
    wrong = next((o for o in options if not o.partition("=")[2] or o.startswith("=")), None)
    if not name or wrong is not None:
        raise UserError(
            f"--strategies: '{part if name else text}': expected NAME or NAME:OPTION=VALUE:OPTION=VALUE between commas, "
            "as allreduce,local_sgd:period=8"
        )
    return Entry(part, match(name, plugins.names(plugins.FAMILIES["strategies"])) or name, tuple(options))


def _has_section(option: str) -> bool:
    section, dot, _ = option.partition("=")[0].partition(".")
    return section == "seed" or (bool(dot) and section in Config.model_fields)
