"""The trials of a search as rows, CSV and JSON, and what a person reads first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.output.columns import columns
from cli.runs import tables
from cli.tune.show.best import dumped
from cli.tune.show.configurations import Configuration, best, counts, ranked, slot_use
from cli.tune.show.search import Search
from cli.tune.show.words import elapsed, figure, shortened
from hvd_train.text import strict_json
from hvd_train.text.names import printable

LONGEST = 40
"""Characters of a cell."""


def header(search: Search) -> list[str]:
    """Return the lines on progress, the best trial, and slots."""
    name = Path(search.file).name
    of_states = counts(search.configurations)
    states = ", ".join(f"{number} {state}" for state, number in of_states.items())
    # Copies of population based training, which continue a trial with other values, do not count.
    own = counts(c for c in search.configurations if c.trials[0].continues is None)
    ended = sum(own.get(state, 0) for state in ("complete", "pruned", "failed"))
    lines = [f"{name}: {ended} of {search.total} trials ended{f' ({states})' if states else ''}"]
    ahead = best(search.configurations, search.objectives)
    if len(search.objectives) > 1:
        lines.append(f"Pareto front: {_trials(ahead)}" if ahead else "no trial is complete")
    else:
        lines += [f"best: {achieved(search, c)} (trial {c.number})" for c in ahead] or ["no trial is complete"]
    use = slot_use(search.records)
    if use is not None:
        slots = f"{use.slots} slot{'s' * (use.slots > 1)}"
        lines.append(f"{slots}, {use.share:.0%} of their time used in {elapsed(use.seconds)}")
    return [printable(line) for line in lines]


def achieved(search: Search, configuration: Configuration) -> str:
    """Return the objectives of a complete configuration, with their names."""
    pairs = zip(search.objectives, configuration.objectives, strict=True)
    return ", ".join(f"{objective.title} {value:.6g}" for objective, value in pairs)


def _trials(found: Sequence[Configuration]) -> str:
    return f"trial{'s' * (len(found) > 1)} {', '.join(str(c.number) for c in found)}"


def shown(search: Search, most: int) -> list[list[str]]:
    """Return the names of the columns, and a row for each of the `most` best configurations.

    The value of a configuration that is not complete is its newest one, in parentheses.
    """
    titles = [objective.title for objective in search.objectives]
    names = ["trial", "state", *titles, *(field.name for field in search.fields)]
    rows = [_row(search, c) for c in ranked(search.configurations, search.objectives)[:most]]
    return [[*names, "evaluations", "seconds", "runs", "reason"], *rows]


def _row(search: Search, configuration: Configuration) -> list[str]:
    last = configuration.last
    unfinished = ["" if last is None else f"({figure(last)})", *[""] * (len(search.objectives) - 1)]
    return [
        str(configuration.number),
        configuration.state,
        *(map(figure, configuration.objectives) if configuration.objectives else unfinished),
        *(shortened(configuration.values.get(field.name), LONGEST) for field in search.fields),
        str(len(configuration.curve)),
        f"{configuration.seconds:.1f}",
        str(len(configuration.spans)),
        shortened(configuration.newest.reason, LONGEST),
    ]


def text(search: Search, most: int) -> str:
    """Return the header, the table of the `most` best configurations, and the best values as YAML."""
    parts = ["\n".join(header(search))]
    if search.configurations:
        rows = shown(search, most)
        parts.append("\n".join([columns(rows), *footnotes(search, rows)]))
    parts += [
        f"trial {c.number}:\n{_indented(dumped(c.values))}" for c in best(search.configurations, search.objectives)[:1]
    ]
    return "\n\n".join(parts) + "\n"


def footnotes(search: Search, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return sentences on the rows of `shown`: what parentheses mean, and how many configurations are left out."""
    unfinished = any(cell.startswith("(") for row in rows[1:] for cell in row[2:3])
    hidden = len(search.configurations) - len(rows) + 1
    return [
        *["Values in parentheses are the newest ones of trials that are not complete."] * unfinished,
        *[f"{hidden} more trial{'s are' if hidden > 1 else ' is'} in trials.csv."] * (hidden > 0),
    ]


def _indented(yaml: str) -> str:
    return "\n".join(f"  {line}" for line in yaml.splitlines())


def csv_text(search: Search) -> str:
    """Return a row for each trial of the study."""
    return tables.csv_text([{name: _cell(value) for name, value in row.items()} for row in _flat(search)])


def _cell(value: Any) -> Any:
    return strict_json.dumps(value) if isinstance(value, dict | list) else value


def _flat(search: Search) -> Iterator[dict[str, Any]]:
    titles = [objective.title for objective in search.objectives]
    for record in search.records:
        yield {
            "trial": record.number,
            "continues": record.continues,
            "state": record.state,
            **dict.fromkeys(titles),
            **dict(zip(titles, record.objectives, strict=False)),
            **{field.name: record.values.get(field.name) for field in search.fields},
            "evaluations": len(record.curve),
            "last": Configuration((record,)).last,
            "seconds": Configuration((record,)).seconds,
            "runs": len(record.spans),
            "folder": record.folder,
            "reason": record.reason,
        }


def as_json(search: Search) -> dict[str, Any]:
    """Return the search and all its trials."""
    use = slot_use(search.records)
    return {
        "file": search.file,
        "overrides": search.overrides,
        "np": search.np,
        "objectives": [{"name": objective.title, "mode": objective.mode} for objective in search.objectives],
        "total": search.total,
        "counts": counts(search.configurations),
        "best": [c.number for c in best(search.configurations, search.objectives)],
        "slots": None if use is None else asdict(use),
        "trials": [asdict(record) for record in search.records],
    }
