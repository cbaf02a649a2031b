"""Write a survey of the data set of a run.

Usage: `python -m hvd_train.data.survey DOCUMENT FILE WORKERS`.

DOCUMENT is the document for ranks (`config.launch.to_document`, in `config.words`). FILE receives
the survey as JSON. WORKERS are the numbers of loading workers to measure, such as 0,2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvd_train.config import words
from hvd_train.config.launch import parse_document
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset
from hvd_train.data.environments.base import Environments
from hvd_train.data.load import load
from hvd_train.data.preprocessing import class_names, has_spectra
from hvd_train.data.samples import StreamSplit, at
from hvd_train.data.survey.columns import columns
from hvd_train.data.survey.drawings import SHOWN, drawings, excerpts
from hvd_train.data.survey.environments import environments
from hvd_train.data.survey.rates import rate
from hvd_train.data.survey.samples import read, target_name
from hvd_train.data.survey.shares import shares
from hvd_train.data.survey.statistics import array, statistics
from hvd_train.data.tokenizing.saved import decoder, described
from hvd_train.errors import UserError
from hvd_train.text import strict_json
from hvd_train.text.display import console, progress


def survey(config: Config, ranks: int, workers: Sequence[int]) -> dict[str, Any]:
    """Return what the data set of `config` contains, as JSON; UserError if it cannot be used."""
    data = load(config.data, config.seed)
    for text in data.warnings:
        print(f"ddl: warning: {text}", file=sys.stderr)
    if isinstance(data.train, Environments):
        return {"environment": environments(data.train, config.seed)}
    train, streams = at(data.train, 0), isinstance(data.train, StreamSplit)
    divided = None if streams else shares(train, config, ranks)
    with progress(console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading samples", total=1 + len(workers))
        samples, size = read(train, config.seed)
        measured = []
        for count in workers:
            bar.update(task, advance=1, description=f"measuring {count} workers")
            measured.append(rate(train, config.data, count, config.seed))
    if not samples:
        raise UserError("no sample could be read, expected at least one")
    of_fields = {name: [s[name] for s in samples if name in s] for name in samples[0]}
    target = target_name(samples[0], config.data.label_key)
    names = class_names(data)
    return {
        "task": data.spec.task,
        "outputs": data.spec.outputs,
        "samples": {name: None if isinstance(part, StreamSplit) else len(part) for name, part in parts(data).items()},
        "classes": names,
        "shares": divided,
        "read": len(samples),
        "bytes_per_sample": size / len(samples),
        "fields": [{"name": name, **statistics(leaves)} for name, leaves in of_fields.items()],
        "columns": columns(data, of_fields, target),
        "titles": [_title(sample[target] if target else None, names) for sample in samples[:SHOWN]],
        "drawings": drawings(samples, spectra=has_spectra(data)),
        "excerpts": excerpts(samples, target, decoder(described(data.preprocessing, data.spec))),
        "rates": measured,
    }


def parts(data: Dataset) -> dict[str, Any]:
    """Return the training samples and all held-out samples, by name."""
    return {"train": data.train, "test": data.test, **data.others}


def _title(target: Any, names: Sequence[str] | None) -> str:
    """Return the target of a sample as a title: the class, a number or a short text."""
    if target is None or isinstance(target, str):
        return (target or "")[:20]
    values = array(target).reshape(-1)
    if len(values) > 3:
        return ""
    if names and len(values) == 1 and values.dtype.kind in "iu" and 0 <= values[0] < len(names):
        return names[int(values[0])][:20]
    return ", ".join(f"{value:.4g}" for value in values.tolist())


def main() -> None:
    """Write the survey of the document in argv to the file in argv."""
    document, file, workers = sys.argv[1:]
    sys.path.insert(0, os.getcwd())  # for targets of the user's own
    config, launch = parse_document(words.join(document, os.environ))
    try:
        result = survey(config, launch.world_size, [int(word) for word in workers.split(",") if word])
    except UserError as error:
        print(f"ddl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    Path(file).write_text(strict_json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
