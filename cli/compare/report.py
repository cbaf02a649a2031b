"""The three forms of a comparison: a table, JSON with every evaluation, and a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.compare import outcome
from cli.compare.outcome import Outcome
from cli.runs import tables
from hvd_train.text import strict_json
from hvd_train.text.names import printable


@dataclass(frozen=True)
class Report:
    """The outcomes of a comparison.

    `goal` is the metric and value of `--target` or of `train.converge`; `chosen` is the metric of
    `--metric`.
    """

    file: str
    budget: str | None
    goal: tuple[str, float] | None
    launch: dict[str, Any]
    outcomes: Sequence[Outcome]
    chosen: str | None = None

    @property
    def metric(self) -> str:
        return self.chosen or (self.goal[0] if self.goal else outcome.metric(self.outcomes))

    def save(self, folder: Path) -> None:
        """Write `compare.json` and `compare.png` to `folder`."""
        from cli.compare.plot import picture

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(self.json(), encoding="utf-8")
        value = self.goal[1] if self.goal and self.goal[0] == self.metric else None
        picture(self.outcomes, self.metric, self.title, value).savefig(folder / "compare.png")

    def json(self) -> str:
        values = {
            "file": self.file,
            "budget": self.budget,
            "target": self.goal,
            "launch": self.launch,
            "metric": self.metric,
            "rows": self.rows(),
            "runs": [asdict(o) for o in self.outcomes],
        }
        return strict_json.dumps(values, indent=1) + "\n"

    def text(self) -> str:
        return tables.text(self.rows()) if self.outcomes else ""

    def rows(self) -> list[tables.Row]:
        return outcome.rows(self.outcomes, self.goal, self.metric)

    @property
    def title(self) -> str:
        emulate = self.launch.get("emulate") or {}
        seeds = max(map(len, outcome.strategies(self.outcomes)), default=0)
        parts = [
            printable(Path(self.file).name),
            f"np={self.launch['world_size']}",
            f"{seeds} seeds" * (seeds > 1),
            re.sub(r"(?<=\d)(?=[A-Za-z])", " ", self.budget or ""),
            f"links of {emulate['gbps']:g} Gbit/s" if "gbps" in emulate else "",
            f"{emulate['latency_ms']:g} ms latency" if "latency_ms" in emulate else "",
            f"rank {emulate['straggler']} slower by a factor of {emulate['factor']:g}"
            if "straggler" in emulate
            else "",
        ]
        return ", ".join(part for part in parts if part)
