"""Which samples each worker of a run would have: `hvd_train.dealt DOCUMENT FILE`, for `ddl data show`.

DOCUMENT is what ranks are told (`config.to_document`, in `words`); FILE receives, as JSON,
`{"histograms": [{class: samples}, ...]}`, one histogram for each worker, in its first epoch.
Samples without a class are of class -1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hvd_train import plugins, strict_json, words
from hvd_train.comm.single import SingleCommunicator
from hvd_train.config import Config, parse_document
from hvd_train.errors import UserError
from hvd_train.sampler import Sampler

Histogram = dict[int, int]


def histograms(config: Config, workers: int) -> list[Histogram]:
    """Samples of each class that each worker has in the first epoch; UserError where they cannot be dealt so."""
    data = plugins.create("hvd_train.data", config.data.name, **config.data.options)
    for text in data.warnings:
        print(f"ddl: warning: {text}", file=sys.stderr)
    labels = data.train.labels
    section = config.data.partition
    partitioner = plugins.create("hvd_train.partition", section.name, **section.options)

    def of(worker: int) -> Histogram:
        size, accumulate, seed = config.data.batch_size, config.train.accumulate, config.seed
        one = Sampler(labels, partitioner, lambda _: (worker, workers), SingleCommunicator(), size, accumulate, seed)
        found, counts = labels[one.epoch(0).indices].unique(return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))

    return [of(worker) for worker in range(workers)]


def main() -> None:
    document, file = sys.argv[1:]
    sys.path.insert(0, os.getcwd())  # for targets of the user's own
    config, launch = parse_document(words.join(document, os.environ))
    try:
        found = histograms(config, launch.world_size)
    except UserError as error:
        print(f"ddl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    Path(file).write_text(strict_json.dumps({"histograms": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
