"""Progress for people: a bar and a final table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from rich.table import Table

from hvd_train.monitor.base import Record, Sink, numbers
from hvd_train.text import display
from hvd_train.text.names import printable

_PRIVACY = [
    ("epsilon", "epsilon against outsiders, who see the models"),
    ("epsilon_ranks", "epsilon against ranks, who know each round's clients"),
]
BAR_SECONDS = 0.1
"""Seconds between two updates of the bar."""
LINE_SECONDS = 5.0
"""Seconds between two lines of training metrics."""
OF_AGENTS = {
    "train": ("episode_return", "env_steps_per_second", "loss", "episode_length", "entropy", "kl", "policy_lag"),
    "test ": ("return", "return_iqm", "success_rate", "episode_length"),
}
"""Figures of agents that lines have, the first of them as fit. The records have all."""
COLUMNS = 120


class Terminal(Sink):
    """Writes to `stream`. `columns` is the width of the terminal behind it; None: no terminal."""

    def __init__(self, stream: TextIO, columns: int | None) -> None:
        self._bar = columns is not None
        self._console = display.console(file=stream, force_terminal=self._bar, width=columns or COLUMNS)
        figures = display.words("{task.fields[figures]}")
        self._progress = display.progress(self._console, figures, disable=not self._bar)
        self._next = 0.0

    def open(self, run: Record) -> None:
        self._console.print(run["title"])
        self._task = self._progress.add_task("train", total=run["total_steps"], completed=run["first_step"], figures="")
        self._progress.start()

    def step(self, step: int) -> None:
        now = time.monotonic()
        if self._bar and now >= self._next:
            self._next = now + BAR_SECONDS
            self._progress.update(self._task, completed=step)

    def train(self, record: Record) -> None:
        self._progress.update(self._task, figures=_brief(record))
        if not self._bar and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self._console.print(_line("train", record, self._console.width))

    def evaluation(self, record: Record) -> None:
        self._console.print(_line("test ", record, self._console.width))

    def close(self, summary: Record) -> None:
        self._progress.stop()
        self._console.print(_table(summary))


def _brief(record: Record) -> str:
    """Return the figure beside the bar."""
    if "episode_return" in record:
        return f"return {record['episode_return']:.4g}"
    return f"loss {record['loss']:.4f}" if "loss" in record else ""


def _line(kind: str, record: Record, width: int) -> str:
    """Return the figures of `record`. Those of an agent are chosen to fit one line."""
    if "env_steps" in record:
        return _line_of_agent(kind, record, width)
    hidden = {"step", "epoch", "seconds", "bytes_sent"}
    figures = (f"{name} {value:.4g}" for name, value in numbers(record).items() if name not in hidden)
    return f"{kind} step {record['step']}, epoch {record['epoch']}: {', '.join(figures)}"


def _line_of_agent(kind: str, record: Record, width: int) -> str:
    line = f"{kind} step {record['step']}, {record['env_steps']:,} env steps:"
    for name in OF_AGENTS[kind]:
        if record.get(name) is not None:
            rate = name == "env_steps_per_second"
            figure = f"{record[name]:,.0f} env steps/s" if rate else f"{name} {record[name]:.4g}"
            line += f" {figure}," if len(line) + len(figure) + 2 <= width else ""
    return line[:-1]


def _table(summary: Record) -> Table:
    table = Table(title="Run", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    seconds = ", ".join(f"{phase} {value:.2f}" for phase, value in summary["seconds"].items())
    privacy = {
        title: f"{summary[name]:.4g} (delta {summary['delta']:g})" for name, title in _PRIVACY if name in summary
    }
    rows = {
        **{f"test {name}": f"{value:.4f}" for name, value in numbers(summary["eval"]).items()},
        **_best(summary),
        **privacy,
        **_league(summary),
        "ended because": summary["ended"],
        "steps (epochs)": f"{summary['steps']} ({summary['epochs']:.4g})",
        **_speed(summary),
        "ranks, engine, strategy": f"{summary['world_size']}, {summary['engine']}, {summary['strategy']}",
        "MB sent by rank 0": f"{summary['bytes_sent'] / 1e6:,.1f}",
        "seconds by phase": seconds,
        "run folder": printable(summary["folder"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _speed(summary: Record) -> dict[str, str]:
    """Return the rate of samples; of an agent that of the steps of its environments."""
    if "env_steps" not in summary:
        return {"samples per second": f"{summary['samples_per_second']:,.0f}"}
    return {"env steps (per second)": f"{summary['env_steps']:,} ({summary['env_steps_per_second']:,.0f})"}


def _best(summary: Record) -> dict[str, str]:
    best = summary.get("best")
    return {"best checkpoint": f"{best['folder']}, {best['metric']} {best['value']:.4f}"} if best else {}


def _league(summary: Record) -> dict[str, str]:
    scores = ", ".join(f"rank {entry['rank']} {entry['score']:.4f}" for entry in summary.get("league", []))
    return {"members, best first": scores} if scores else {}


def create(stream: TextIO, columns: int | None) -> Terminal:
    return Terminal(stream, columns)
