"""The page of tables, each figure beside its target."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median

from benchmarks.workloads.cases import SPARSE_ROWS, WORKLOADS, Metric
from benchmarks.workloads.measured import Row
from cli.bench.goals import Goal

Rows = Mapping[str, Row]
HEADS = {
    "Metrics on held-out samples": "workload | metric | target | np=1, by seed | np=2, by seed | plain, by seed | "
    "np=1 to np=2 | met",
    "Translations beside simple answers": "np | seed | held-out sources | number | answer | BLEU | chrF | exact",
    "Seconds of the whole command": "workload | steps np=1 / np=2 / plain | np=1 | np=2 | plain | np=2 over plain (range) | "
    "target | met | CPU s np=1 / np=2 / plain",
    "Peak memory of a rank": "workload | PSS MB np=1 / np=2 / plain | RSS MB np=1 / np=2 / plain | PSS np=2 over plain | "
    "RSS np=2 over plain | target of PSS | met",
    "CPU time of a step of BERT": "batches | steps | CPU ms a step | ratio | target | met",
    "Bytes that a rank sends": "workload | bytes of a step | with fp16 | ratio | target | met",
    "Sparse embeddings": "rows of each table | bytes a step, dense | sparse | ratio | ms a step, dense | sparse | ratio | "
    "target | met",
    "Strategies": "workload | metric | target of allreduce | measured",
    "Layouts of BERT": "layout | loss | s | RSS MB | result",
    "Runs that failed": "run | exit code | message",
}
"""The columns of each section."""
TEXTS = {
    "Metrics on held-out samples": "The difference of np=1 and np=2 is the largest one of a seed.",
    "Translations beside simple answers": "`ddl evaluate` of `translate`. The similarity to the nearest training source is the "
    "Dice coefficient of the trigrams of characters. The target is that the model is better than the nearest training "
    "source on sources unlike training.",
    "Seconds of the whole command": "Start, evaluations and checkpoints are in the time of ddl, start and one evaluation in "
    "that of the script. Ratios are medians of pairs that ran one after the other.",
    "Peak memory of a rank": "That of the largest process of the command. PSS (memory that processes share is divided among "
    "them) is sampled three times a second, the peak of RSS is the kernel's.",
    "CPU time of a step of BERT": "An epoch of `bert_trec` on one rank with one thread. The CPU time of a run of one step is "
    "taken off.",
    "Bytes that a rank sends": "np=2, ten steps.",
    "Sparse embeddings": "np=2, factorisation of random ratings with as many users as items, by Adam.",
    "Strategies": "np=2, one seed. Under `federated` each worker has its own users where the data have users.",
    "Layouts of BERT": "The first steps of `bert_trec` with equal global batches, and the loss on held-out samples.",
}
Cells = Sequence[str]


def page(rows: Rows, command: str) -> str:
    """Return the page in Markdown, with the parts that have rows."""
    parts = [
        text
        for make in (_metrics, _translations, _times, _memory, _bert, _bytes, _sparse, _strategies, _layouts, _failures)
        if (text := make(rows))
    ]
    return "\n\n".join([_head(rows, command), *parts]) + "\n"


def _head(rows: Rows, command: str) -> str:
    import torch

    days = sorted({row["day"] for row in rows.values()})
    load = median(row["load"] for row in rows.values()) if rows else 0
    machine = (
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, Python {platform.python_version()}"
    )
    made = (
        f"Made by `{command}`, {_span(days)}: {len(rows)} runs on {machine}. The median of the load was {load:.1f}; a run itself "
        "gives up to 2. [README.md](README.md#workloads) tells how the figures are measured, and "
        "[docs/workloads.md](../docs/workloads.md) what they mean."
    )
    terms = (
        "np is the number of ranks of `ddl run`. Plain is the single-process script `benchmarks/plain/NAME.py` with two threads. "
        "Both have the same global batch, steps, schedule and held-out samples. Seeds are those of initial weights and the order "
        "of samples."
    )
    return "\n\n".join(["# Workloads", *map(_filled, (made, terms))])


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)


def _span(days: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "no runs yet"


def _metrics(rows: Rows) -> str:
    lines = []
    for name in _measured(rows, "runs"):
        for metric in WORKLOADS[name].metrics:
            found = {
                kind: _values(_of(rows, "runs", name, kind), _reader(metric, kind)) for kind in _variants(rows, name)
            }
            met = _met(metric, [value for kind in ("np=1", "np=2") for value in found.get(kind, ())])
            same = _largest_difference(found.get("np=1"), found.get("np=2"))
            cells = [_each(found.get(kind)) for kind in ("np=1", "np=2", "plain")]
            lines.append([name, metric.name, metric.target, *cells, same, _yes(met)])
    return _section("Metrics on held-out samples", lines)


def _met(metric: Metric, values: Iterable[float]) -> list[bool]:
    limit = metric.limit
    return [] if limit is None else [Goal("", metric.sense, limit, value).met for value in values]


def _reader(metric: Metric, variant: str) -> Callable[[Row], float | None]:
    return lambda row: row["metrics"].get(metric.plain if variant == "plain" else metric.name)


def _largest_difference(first: Sequence[float] | None, second: Sequence[float] | None) -> str:
    pairs = list(zip(first or (), second or (), strict=False))
    return f"{max(abs(a - b) for a, b in pairs):.2g}" if pairs else "-"


def _translations(rows: Rows) -> str:
    lines = []
    for kind in ("np=1", "np=2"):
        for row in _of(rows, "runs", "translate", kind):
            for scores in row["translations"]:
                figures = [_number(scores[name]) for name in ("bleu", "chrf", "exact")]
                lines.append(
                    [kind, str(row["seed"]), scores["sources"], str(scores["number"]), scores["answer"], *figures]
                )
    return _section("Translations beside simple answers", lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _times(rows: Rows) -> str:
    lines = []
    for name in _measured(rows, "runs"):
        of = {kind: _of(rows, "runs", name, kind) for kind in ("np=1", "np=2", "plain")}
        ratios = _ratios(of["np=2"], of["plain"], "seconds")
        steps = " / ".join(str(next(iter(rows_of))["steps"]) if rows_of else "-" for rows_of in of.values())
        walls = [_median(rows_of, "seconds", ".1f") for rows_of in of.values()]
        cpus = [_median(rows_of, "cpu_seconds", ".1f") for rows_of in of.values()]
        met = [median(ratios) <= 1.0] if ratios else []
        lines.append([name, steps, *walls, _spread(ratios), "<= 1", _yes(met), " / ".join(cpus)])
    return _section("Seconds of the whole command", lines)


def _memory(rows: Rows) -> str:
    lines = []
    for name in _measured(rows, "runs"):
        of = {kind: _of(rows, "runs", name, kind) for kind in ("np=1", "np=2", "plain")}
        sizes = [" / ".join(_median(of[kind], size, ".0f") for kind in of) for size in ("pss_mb", "rss_mb")]
        ratios = [_ratios(of["np=2"], of["plain"], size) for size in ("pss_mb", "rss_mb")]
        met = [median(ratios[0]) <= 1.0] if ratios[0] else []
        lines.append([name, *sizes, *map(_spread, ratios), "<= 1", _yes(met)])
    return _section("Peak memory of a rank", lines)


def _bert(rows: Rows) -> str:
    known = ("start", "padding to the longest", "buckets", "buckets, bf16")
    of = {kind: found for kind in known if (found := _of(rows, "bert", "bert_trec", kind))}
    if list(of) not in ([*known], [*known[:-1]]):  # not every processor has bf16
        return ""
    start, *others = (rows_of[0] for rows_of in of.values())
    kinds = list(of)[1:]
    steps = [
        1000 * (row["cpu_seconds"] - start["cpu_seconds"]) / max(1, row["steps"] - start["steps"]) for row in others
    ]
    limits = (None, (0.70, "padding"), (0.75, "fp32"))[: len(kinds)]
    lines = []
    for number, (kind, row, limit) in enumerate(zip(kinds, others, limits, strict=True)):
        ratio = steps[number] / steps[number - 1]
        judged = [f"{ratio:.2f} of {limit[1]}", f"<= {limit[0]:g}", _yes([ratio <= limit[0]])] if limit else ["-"] * 3
        lines.append([kind, str(row["steps"]), f"{steps[number]:.0f}", *judged])
    return _section("CPU time of a step of BERT", lines)


def _bytes(rows: Rows) -> str:
    lines = []
    for name in _measured(rows, "bytes"):
        whole, half = (_of(rows, "bytes", name, kind) for kind in ("none", "fp16"))
        if whole and half:
            a, b = (row["bytes_sent"] / row["steps"] for row in (whole[0], half[0]))
            lines.append([name, f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.3f}", "0.5", _yes([b / a <= 0.51])])
    return _section("Bytes that a rank sends", lines)


def _sparse(rows: Rows) -> str:
    lines = []
    for number in SPARSE_ROWS:
        dense, sparse = (_of(rows, "sparse", "movielens", f"{number:,} rows, {kind}") for kind in ("dense", "sparse"))
        if dense and sparse:
            sent = [median(row["bytes_sent"] / row["steps"] for row in rows_of) for rows_of in (dense, sparse)]
            steps = [_step_ms(rows_of) for rows_of in (dense, sparse)]
            share, faster = sent[1] / sent[0], steps[1] / steps[0]
            met = ([share < 0.01] if number == SPARSE_ROWS[-1] else []) + ([faster < 1] if number >= 10_000 else [])
            target = {1_000: "-", 10_000: "time < 1", 100_000: "bytes < 0.01, time < 1"}[number]
            lines.append(
                [
                    f"{number:,}",
                    *(f"{s:,.0f}" for s in sent),
                    f"{share:.4f}",
                    *(f"{s:.2f}" for s in steps),
                    f"{faster:.2f}",
                    target,
                    _yes(met),
                ]
            )
    return _section("Sparse embeddings", lines)


def _step_ms(rows_of: Sequence[Row]) -> float:
    return median(1000 / row["steps_per_second"] for row in rows_of)


def _strategies(rows: Rows) -> str:
    lines = []
    for name in _measured(rows, "strategies"):
        for metric in WORKLOADS[name].metrics:
            found = {
                row["variant"]: row for row in rows.values() if (row["part"], row["workload"]) == ("strategies", name)
            }
            cells = [f"{kind} {_value(row, metric)}" for kind, row in found.items()]
            lines.append([name, metric.name, metric.target, "; ".join(cells)])
    return _section("Strategies", lines)


def _value(row: Row, metric: Metric) -> str:
    value = row.get("metrics", {}).get(metric.name)
    return f"{value:.4g}" if value is not None else "failed"


def _layouts(rows: Rows) -> str:
    lines = []
    for row in (row for row in rows.values() if row["part"] == "layouts"):
        failed = "error" in row
        figures = (
            ["-"] * 3 if failed else [f"{row['metrics']['loss']:.6f}", f"{row['seconds']:.1f}", f"{row['rss_mb']:.0f}"]
        )
        lines.append([row["variant"], *figures, " ".join(row["error"]) if failed else "trained"])
    return _section("Layouts of BERT", lines)


def _failures(rows: Rows) -> str:
    failed = [row for row in rows.values() if "error" in row and row["part"] != "layouts"]
    lines = [[row["key"], str(row["code"]), " ".join(row["error"])[:200]] for row in failed]
    return _section("Runs that failed", lines)


def _measured(rows: Rows, part: str) -> list[str]:
    found = {row["workload"] for row in rows.values() if row["part"] == part and "error" not in row}
    return [name for name in WORKLOADS if name in found]


def _variants(rows: Rows, name: str) -> set[str]:
    return {
        row["variant"]
        for row in rows.values()
        if (row["part"], row["workload"]) == ("runs", name) and "error" not in row
    }


def _of(rows: Rows, part: str, name: str, variant: str) -> list[Row]:
    """Return the finished rows by seed."""
    of = [row for row in rows.values() if (row["part"], row["workload"], row["variant"]) == (part, name, variant)]
    return sorted((row for row in of if "error" not in row), key=lambda row: row["seed"])


def _values(of: Iterable[Row], read: Callable[[Row], float | None]) -> list[float]:
    return [value for row in of if (value := read(row)) is not None]


def _ratios(of: Sequence[Row], floor: Sequence[Row], name: str) -> list[float]:
    floors = {row["seed"]: row[name] for row in floor}
    return [row[name] / floors[row["seed"]] for row in of if row["seed"] in floors]


def _median(of: Sequence[Row], name: str, form: str) -> str:
    return format(median(row[name] for row in of), form) if of else "-"


def _each(values: Sequence[float] | None) -> str:
    return ", ".join(f"{value:.4g}" for value in values) if values else "-"


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"


def _yes(met: Sequence[bool]) -> str:
    return "-" if not met else "yes" if all(met) else f"no ({sum(met)} of {len(met)})" if len(met) > 1 else "no"


def _section(title: str, lines: Sequence[Cells]) -> str:
    """Return the section with these lines, or nothing without lines."""
    parts = (f"## {title}", _filled(TEXTS.get(title, "")), table(HEADS[title].split(" | "), lines))
    return "\n\n".join(part for part in parts if part) if lines else ""


def table(head: Cells, lines: Iterable[Cells]) -> str:
    """Return a table in Markdown. Bars within cells are escaped."""
    return "\n".join(_table(head, lines))


def _table(head: Cells, lines: Iterable[Cells]) -> Iterator[str]:
    yield _line(head)
    yield "|" + "---|" * len(head)
    yield from map(_line, lines)


def _line(cells: Cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
