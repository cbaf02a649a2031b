"""What a person sees of a search while it runs: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from cli.output import streams
from cli.search.records import Record
from cli.tune.objectives import Objective
from cli.tune.show.configurations import Configuration
from cli.tune.show.words import elapsed, figure, shortened
from hvd_train.text import display
from hvd_train.text.names import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SECONDS = 0.25
"""Seconds between two drawings, at least."""
SHARE = 0.01
"""Share of the time that drawing takes at most."""
NEWEST = 5
"""Ended trials that the table keeps, besides the best one."""
REASON = 200
"""Characters of a reason in a line."""
BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {"complete": "green", "running": "cyan", "pruned": "yellow", "failed": "red"}
_ENDED = ("complete", "pruned", "failed")


class Live:
    """Shows a search of `total` trials on `stream`: a table that changes in place if it is a terminal, else lines.

    The caller passes each trial that has changed, so the cost does not depend on the number of trials.
    With `quiet`, only what `say` gets is shown. A trial that has ended when it is passed for the
    first time is of an earlier process and gets no line.
    """

    def __init__(self, total: int, objectives: Sequence[Objective], stream: TextIO, *, quiet: bool = False) -> None:
        terminal = stream.isatty()
        self._total, self._objectives = total, objectives
        self._lines = None if terminal or quiet else stream
        self._screen = _Screen(display.console(file=stream)) if terminal and not quiet else None
        self._began = time.monotonic()
        self._used, self._slots = 0, 0
        self._running: dict[int, Record] = {}
        self._newest: deque[Record] = deque(maxlen=NEWEST)
        self._best: Record | None = None
        self._first: dict[int, int] = {}
        """The first trial of the chain of each trial that has ended."""
        self._states: dict[int, str] = {}
        """How the newest trial of each chain ended, by the number of its first trial."""
        self._counts: Counter[str] = Counter()

    def changed(self, record: Record) -> None:
        """Take note of a trial that is new or has changed."""
        seen = self._running.pop(record.number, None)
        if record.state == "running":
            self._running[record.number] = record
        if record.state not in _ENDED or record.number in self._first:
            return
        self._count(record)
        self._newest.append(record)
        if record.objectives and (self._best is None or self._is_better(record, self._best)):
            self._best = record
        if seen is not None and self._lines is not None:
            print(printable(self._line(record)), file=self._lines, flush=True)

    def say(self, text: str) -> None:
        """Print a message; on a terminal it goes above the table."""
        if self._screen is None:
            streams.say(text)
        else:
            self._screen.say(text)

    def update(self, used: int, slots: int) -> None:
        """Draw the table, with the number of `slots` in use, unless it was drawn a moment ago."""
        self._used, self._slots = used, slots
        if self._screen is not None and self._screen.is_due:
            self._screen.draw(self._view(*self._screen.size))

    def close(self) -> None:
        """Leave the last state of the table on the terminal."""
        if self._screen is not None:
            self._screen.close(self._view(*self._screen.size))

    def _count(self, record: Record) -> None:
        """Count a trial that ended in the place of the one that it continues."""
        first = record.number if record.continues is None else self._first.get(record.continues, record.number)
        self._first[record.number] = first
        if first in self._states:
            self._counts[self._states[first]] -= 1
        self._states[first] = record.state
        self._counts[record.state] += 1

    def _is_better(self, one: Record, other: Record) -> bool:
        return self._objectives[0].is_better(one.objectives[0], other.objectives[0])

    def _line(self, record: Record) -> str:
        """Return the line of a trial that ended."""
        one, names = Configuration((record,)), [objective.title for objective in self._objectives]
        reached = ", ".join(f"{name} {figure(v)}" for name, v in zip(names, record.objectives, strict=False))
        if record.state == "pruned" and one.last is not None:
            reached = f"pruned at {names[0]} {figure(one.last)}"
        count = len(record.curve)
        text = f"trial {record.number}: {reached or record.state} after {count} evaluation{'s' * (count != 1)}"
        reason = f": {shortened(record.reason, REASON)}" if record.reason else ""
        return f"{text}, {one.seconds:.1f} s{reason}; {self._best_text()}"

    def _best_text(self) -> str:
        if self._best is None:
            return "none is complete"
        return f"best {figure(self._best.objectives[0])} (trial {self._best.number})"

    def _view(self, width: int, height: int) -> Text:
        """Return at most `height` lines of `width` columns: progress, the best value, and a row for each trial."""
        states = "".join(f", {n} {state}" for state, n in sorted(self._counts.items()) if n and state != "complete")
        ended = f"{sum(self._counts.values())}/{self._total} trials{states}"
        head = [
            f"{ended}, {elapsed(time.monotonic() - self._began)}, {self._used} of {self._slots} slots",
            f"{self._objectives[0].title}: {self._best_text()}",
        ]
        rows, hidden = self._rows(height - len(head) - 2)
        foot = [f"{hidden} more running"] * bool(hidden)
        cells = _cells(rows, self._best, self._objectives[0], width)
        return _text([*head, *_aligned(cells)] if rows else head, foot, width, [record.state for record in rows])

    def _rows(self, most: int) -> tuple[list[Record], int]:
        """Return the trials to show, at most `most`, and how many running ones are not among them.

        The best one comes first, then the newest that ended, as far as there is room, then those that run.
        """
        best = [] if self._best is None else [self._best]
        running = list(self._running.values())
        room = max(0, most - len(best) - len(running))
        ended = [record for record in self._newest if record is not self._best]
        chosen = [*best, *ended[max(0, len(ended) - room) :], *running][: max(0, most)]
        return chosen, len(running) - sum(record.state == "running" for record in chosen)


def _cells(records: Iterable[Record], best: Record | None, objective: Objective, width: int) -> list[list[str]]:
    """Return the names of the columns and a row for each trial; columns that `width` is too small for are left out."""
    names = ["trial", "state", printable(objective.title)]
    names += ["best", "evals"] * (width >= 60) + ["curve"] + ["values"] * (width >= 75)
    rows = [
        {
            "trial": f"{record.number}",
            "state": "best" if record is best else record.state,
            names[2]: figure(Configuration((record,)).last),
            "best": figure(_best_of(record, objective)),
            "evals": f"{len(record.curve)}",
            "curve": sparkline(record.curve.values(), 16 if width >= 60 else 10),
            "values": printable(record.reason) if record.reason else values(record.values),
        }
        for record in records
    ]
    return [names, *([row[name] for name in names] for row in rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines. A table of rich takes ten times as long, several times a second."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in rows]


def _text(lines: Sequence[str], foot: Sequence[str], width: int, states: Sequence[str]) -> Text:
    """Return the lines, cut to `width` columns; the last lines have the colours of `states`."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    cut = [line if cell_len(line) <= width else f"{set_cell_size(line, width - 3)}..." for line in (*lines, *foot)]
    styles = [*[""] * (len(lines) - len(states)), *(STYLES[state] for state in states), *["dim"] * len(foot)]
    return Text("\n", no_wrap=True).join(Text(line, style) for line, style in zip(cut, styles, strict=True))


def _best_of(record: Record, objective: Objective) -> float | None:
    known = [value for value in (*record.curve.values(), *record.objectives[:1]) if math.isfinite(value)]
    return (max if objective.mode == "max" else min)(known, default=None)


def values(of_fields: Mapping[str, Any]) -> str:
    """Return the values of fields, each after the last word of its name if that is unambiguous."""
    words = Counter(name.rpartition(".")[2] for name in of_fields)
    names = {name: last if words[last := name.rpartition(".")[2]] == 1 else name for name in of_fields}
    return ", ".join(f"{printable(names[name])} {shortened(value, 24)}" for name, value in of_fields.items())


def sparkline(curve: Iterable[float], width: int) -> str:
    """Return a curve as blocks, the lowest value as the lowest block, in at most `width` characters."""
    known = [value for value in curve if math.isfinite(value)]
    count = min(width, len(known))
    picked = [known[round(i * (len(known) - 1) / max(1, count - 1))] for i in range(count)]
    if not picked:
        return ""
    low, high = min(known), max(known)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round(steps * (v - low) / (high - low)) if high > low else steps // 2] for v in picked)


class _Screen:
    """The end of the terminal of `console`, which is drawn in place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as Screen

        self._console = console
        self._screen = Screen(console=console, auto_refresh=False, redirect_stdout=False)
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @property
    def size(self) -> tuple[int, int]:
        """Columns, and lines without the one below the last line."""
        return self._console.width, self._console.height - 1

    def say(self, text: str) -> None:
        self._console.print(f"ddl: {printable(text)}", soft_wrap=True)

    def draw(self, view: Text) -> None:
        began = time.monotonic()
        self._screen.start()
        self._screen.update(view, refresh=True)
        took = time.monotonic() - began
        self._due = began + max(SECONDS, took / SHARE)

    def close(self, view: Text) -> None:
        self.draw(view)
        self._screen.stop()
