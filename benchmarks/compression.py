"""Accuracy of compressed models on digits, against the same models without compression.

Run `python -m benchmarks.compression [prune] [movement] [distill] [--seeds 5]`. A seed decides the initial
parameters and the order of the samples; the held-out samples are the same 360 (0.28 points each).
Differences are paired by seed. The interval is Student's, of 95 %.

prune     80 % of the weights of the mlp of examples/digits_mlp.yaml become zero in further epochs, by
          magnitude. The uncompressed model is trained for as many epochs.
movement  The same by movement.
distill   a student with a tenth of the teacher's parameters, with and without the teacher.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.launch import Launch
from hvd_train.config.resolve import resolve
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.rank.run_folder import describe
from hvd_train.state.checkpoint_folder import CHECKPOINTS
from hvd_train.training.loop import Trainer

EPOCHS, BATCH = 20, 32
STEPS = EPOCHS * math.ceil(1437 / BATCH)
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262, 20: 2.093}
"""Student's 97.5 % quantiles, by the number of values."""


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean of `values` and the half width of its 95 % interval."""
    return statistics.fmean(values), QUANTILES[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def train(folder: Path, seed: int, hidden: list[int], **sections: Any) -> Trainer:
    """Train an mlp on digits in `folder`, and return its trainer."""
    values = {
        "seed": seed,
        "model": {"name": "mlp", "hidden": hidden},
        "data": {"name": "digits", "batch_size": BATCH},
        "optimizer": {"name": "AdamW", "lr": 0.004},
        "schedule": {"name": "cosine", "warmup_steps": 10},
        "train": {"epochs": EPOCHS, "eval_every": STEPS},
        "checkpoint": {"every": 10**6},
        **sections,
    }
    folder.mkdir(parents=True)
    config, comm = resolve(Document(values, "benchmark")), SingleCommunicator()
    built = build(config, comm)
    trainer = assemble(config, comm, built, Surroundings(checkpoints=folder / CHECKPOINTS))
    describe(folder, config, Launch(world_size=1, engine="single", output=str(folder)), built.data)
    trainer.run()
    return trainer


def accuracy(trainer: Trainer) -> float:
    """Return the accuracy on the held-out samples in points."""
    found: Any = trainer.evaluation.metrics["accuracy"]
    return 100 * float(found)


def prune(folder: Path, seed: int, method: str = "magnitude") -> dict[str, float]:
    """Return the accuracy of an mlp with 80 % zeros, and of the one without."""
    train(folder / "start", seed, [128, 64])
    begins: dict[str, Any] = {"init": str(folder / "start")}
    dense = train(folder / "dense", seed, [128, 64], compress_model=begins)
    schedule = {"begin": 0, "end": STEPS // 2, "every": 15}
    section = {**begins, "prune": {"method": method, "sparsity": 0.8, "schedule": schedule}}
    pruned = train(folder / "pruned", seed, [128, 64], compress_model=section)
    assert abs(pruned.slimming.metrics()["sparsity"] - 0.8) < 1e-3
    return {"uncompressed": accuracy(dense), "pruned": accuracy(pruned)}


def distill(folder: Path, seed: int) -> dict[str, float]:
    """Return the accuracy of a teacher, and of a student alone and with the teacher."""
    teacher = train(folder / "teacher", seed, [256])
    alone = train(folder / "alone", seed, [25])
    sizes = [sum(p.numel() for p in t.model.parameters()) for t in (teacher, alone)]
    assert sizes[1] <= sizes[0] / 10, sizes
    section = {"distill": {"teacher": str(folder / "teacher"), "temperature": 4.0, "alpha": 0.9}}
    taught = train(folder / "taught", seed, [25], compress_model=section)
    return {"uncompressed": accuracy(teacher), "alone": accuracy(alone), "taught": accuracy(taught)}


MEASURES: dict[str, tuple[Callable[[Path, int], dict[str, float]], list[tuple[str, str]]]] = {
    "prune": (prune, [("pruned", "uncompressed")]),
    "movement": (partial(prune, method="movement"), [("pruned", "uncompressed")]),
    "distill": (distill, [("taught", "alone"), ("taught", "uncompressed")]),
}
"""What is measured, and the pairs of which the difference is printed."""


def _shown(what: str, seed: int, found: dict[str, float]) -> dict[str, float]:
    print(f"{what}: seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(QUANTILES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for what in options.what:
        measure, pairs = MEASURES[what]
        with tempfile.TemporaryDirectory() as folder:
            found = [_shown(what, seed, measure(Path(folder) / str(seed), seed)) for seed in range(options.seeds)]
        for name in found[0]:
            mean, half = interval([one[name] for one in found])
            print(f"{what}: {name}: accuracy {mean:.2f} +- {half:.2f}")
        for one, other in pairs:
            mean, half = interval([each[one] - each[other] for each in found])
            print(f"{what}: {one} - {other}: {mean:+.2f} +- {half:.2f} points", flush=True)


if __name__ == "__main__":
    main()
