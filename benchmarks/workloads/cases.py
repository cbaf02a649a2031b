"""What is measured: the workloads, and the commands of each part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from cli.bench.goals import Sense
from cli.compare.entries import entries, file_sync
from hvd_train.compute.precision import Precision
from hvd_train.config.fetched import place

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PARTS = ("runs", "bert", "bytes", "sparse", "strategies", "layouts")
SPARSE_ROWS = (1_000, 10_000, 100_000)
STRATEGIES = ("allreduce", "local_sgd:period=8", "federated")
LARGE = ("bert_trec", "mnist_cnn", "translate")
"""Workloads whose bytes with and without fp16 are compared."""
QUICK = ("train.epochs=null", "train.steps=4", "train.eval_samples=64")


@dataclass(frozen=True)
class Metric:
    """A metric of ddl's summary, the name of the same one in the plain script, and the target."""

    name: str
    plain: str
    sense: Sense = ">="
    limit: float | None = None
    """The target, if there is one."""

    @property
    def target(self) -> str:
        return "-" if self.limit is None else f"{self.sense} {self.limit:g}"


@dataclass(frozen=True)
class Workload:
    """An example with its plain script."""

    example: str
    script: str
    file: str
    """The data: a file of this project, or `fetched:NAME/FILE` of `ddl data fetch NAME`."""
    batch: int
    """Samples of a step on all ranks together."""
    metrics: tuple[Metric, ...]
    seconds: float
    """About how long a run takes, until one has been measured."""
    model: str | None = None
    """The folder of a pretrained model, as `fetched:NAME`."""
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Of the plain script."""
    evaluated: bool = False
    """The metrics are those of `ddl evaluate` after the run, which is not in its time."""
    clients: tuple[str, ...] = ()
    """Overrides under `federated`: the samples of each worker."""

    @property
    def yaml(self) -> Path:
        return EXAMPLES / f"{self.example}.yaml"


WORKLOADS: Mapping[str, Workload] = {
    "bert_trec": Workload(
        "bert_trec", "trec", "fetched:trec/trec.csv", 32,
        (Metric("accuracy", "accuracy", ">=", 0.92), Metric("f1_score", "f1", ">=", 0.90)), 160, "fetched:minilm",
    ),
    "sms_spam": Workload(
        "sms_spam", "sms_spam", "fetched:sms-spam/sms_spam.csv", 32,
        (Metric("f1_score", "f1", ">=", 0.97), Metric("auroc", "auroc", ">=", 0.99)), 200, "fetched:minilm",
    ),
    "movielens": Workload(
        "movielens", "movielens", "fetched:movielens-100k/ratings.csv", 256,
        (Metric("rmse", "rmse", "<=", 0.92),), 8, clients=("data.partition=by_group",),
    ),
    "movielens_ranking": Workload(
        "movielens_ranking", "movielens_ranking", "fetched:movielens-100k/ratings.csv", 256,
        (Metric("recall_at_10", "recall_at_10", ">=", 0.20), Metric("ndcg_at_10", "ndcg_at_10", ">=", 0.35)), 12,
        clients=("data.partition=by_group",),
    ),
    "spoken_digits": Workload(
        "spoken_digits", "spoken_digits", "fetched:spoken-digits/digits.npz", 32,
        (Metric("accuracy", "accuracy", ">=", 0.98),), 12,
    ),
    "mnist_cnn": Workload(
        "mnist_cnn", "mnist_cnn", "fetched:mnist-5k/mnist_5k.npz", 64,
        (Metric("accuracy", "accuracy", ">=", 0.98),), 20, options=("--augment",),
    ),
    "mnist_cnn without augmentation": Workload(
        "mnist_cnn", "mnist_cnn", "fetched:mnist-5k/mnist_5k.npz", 64,
        (Metric("accuracy", "accuracy", ">=", 0.97),), 16, overrides=("data.transforms=[]",),
    ),
    "translate": Workload(
        "translate", "translate", "fetched:messages/en-fr.tsv", 64,
        (
            Metric("bleu of strings unlike training", "", ">=", 10), Metric("bleu", "bleu"), Metric("chrf", "chrf"),
            Metric("exact", "exact"),
        ), 300, evaluated=True,
    ),
    "linear_regression": Workload(
        "linear_regression", "linear_regression", "examples/line.csv", 64, (Metric("loss", "loss", "<=", 1e-9),), 5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One process to measure: `ddl run` on `ranks` ranks, or a plain script (no ranks)."""

    part: str
    workload: str
    variant: str
    seed: int
    ranks: int
    arguments: tuple[str, ...]
    """Of the plain script, or the file and the overrides of `ddl run`."""
    threads: int | None = None
    """Threads of a rank; by default those that `ddl run` chooses."""
    seconds: float = 10
    kept: bool = False
    """Keep the run folder, for pictures."""

    @property
    def evaluated(self) -> bool:
        return self.part == "runs" and self.ranks > 0 and WORKLOADS[self.workload].evaluated

    @property
    def key(self) -> str:
        return f"{self.part}: {self.workload}, {self.variant}, seed {self.seed}"


def plan(
    parts: Sequence[str], names: Sequence[str], seeds: int, ranks: Sequence[int], output: Path, *, quick: bool
) -> list[Case]:
    """Return the cases in the order in which they run: those that are compared follow one another."""
    makers = {
        "runs": lambda: _runs(names, seeds, ranks, quick),
        "bert": lambda: _bert(names, quick),
        "bytes": lambda: _bytes(names, quick),
        "sparse": lambda: _sparse(names, output, quick),
        "strategies": lambda: _strategies(names, quick),
        "layouts": lambda: _layouts(names, quick),
    }  # fmt: skip
    return [case for part in PARTS if part in parts for case in makers[part]()]


def _runs(names: Sequence[str], seeds: int, ranks: Sequence[int], quick: bool) -> Iterator[Case]:
    for name in names:
        for seed in range(seeds):
            variants = [
                _plain(name, seed, quick),
                *(_ddl("runs", name, f"np={n}", seed, n, quick=quick) for n in ranks),
            ]
            yield from variants[:: -1 if seed % 2 else 1]


def _plain(name: str, seed: int, quick: bool) -> Case:
    workload = WORKLOADS[name]
    epochs = yaml.safe_load(workload.yaml.read_text(encoding="utf-8"))["train"].get("epochs")
    data = ["--data", str(place(workload.file))]
    model = ["--model", str(place(workload.model))] if workload.model else []
    length = ["--limit", "4"] if quick else ["--epochs", str(epochs)] if epochs else []
    arguments = (f"benchmarks.plain.{workload.script}", *data, *model, *length, *workload.options)
    return Case("runs", name, "plain", seed, 0, (*arguments, "--seed", str(seed)), 2, workload.seconds)


def _ddl(
    part: str,
    name: str,
    variant: str,
    seed: int,
    ranks: int,
    *overrides: str,
    quick: bool,
    share: int = 0,
    threads: int | None = None,
) -> Case:
    """Return a run of the example with the global batch of the workload; `share`: samples of a rank in a step."""
    workload = WORKLOADS[name]
    arguments = (
        str(workload.yaml.relative_to(ROOT)),
        f"seed={seed}",
        f"data.batch_size={share or workload.batch // ranks}",
        *workload.overrides,
        *overrides,
        *(QUICK if quick else ()),
    )
    kept = part == "runs" and seed == 0 and ranks == 2
    return Case(part, name, variant, seed, ranks, arguments, threads, workload.seconds, kept)


def _bert(names: Sequence[str], quick: bool) -> Iterator[Case]:
    """An epoch of the questions on one rank with one thread, and the start alone.

    A processor without bf16 emulates it, 12 times as slowly.
    """
    variants: dict[str, tuple[str, ...]] = {
        "start": ("train.epochs=null", "train.steps=1"),
        "padding to the longest": ("data.bucket=null",),
        "buckets": (),
    }
    if not Precision("bf16", torch.device("cpu")).warnings:
        variants["buckets, bf16"] = ("train.precision=bf16",)
    for variant, overrides in variants.items() if "bert_trec" in names else ():
        length = (
            (*overrides, "train.eval_samples=32")
            if variant == "start"
            else ("train.epochs=1", *overrides, "train.eval_samples=32")
        )
        yield _ddl("bert", "bert_trec", variant, 0, 1, *length, quick=quick, threads=1)


def _bytes(names: Sequence[str], quick: bool) -> Iterator[Case]:
    short = ("train.epochs=null", "train.steps=10", "train.eval_samples=64")
    for name in names:
        for compression in ("none", "fp16") if name in LARGE else ():
            yield _ddl("bytes", name, compression, 0, 2, *short, f"sync.compression={compression}", quick=quick)


def _sparse(names: Sequence[str], output: Path, quick: bool) -> Iterator[Case]:
    """Factorisation of random ratings, with tables of so many rows."""
    if "movielens" not in names:
        return
    for rows in SPARSE_ROWS:
        for seed in range(1 if quick else 3):
            variants = [
                _ddl(
                    "sparse", "movielens", f"{rows:,} rows, {kind}", seed, 2,
                    f"data.path={output / ratings_file(rows)}", "train.epochs=null", f"train.steps={4 if quick else 1000}",
                    "train.eval_samples=64", "train.eval_every=1000", f"model.sparse={str(kind == 'sparse').lower()}",
                    "optimizer={name: Adam, lr: 0.003}", quick=False,
                )
                for kind in ("dense", "sparse")
            ]  # fmt: skip
            yield from variants[:: -1 if seed % 2 else 1]


def ratings_file(rows: int) -> str:
    """Return the name of the file with the ratings of `rows` users and as many items."""
    return f"ratings-{rows}.csv"


def _strategies(names: Sequence[str], quick: bool) -> Iterator[Case]:
    for name in names:
        workload = WORKLOADS[name]
        for entry in entries(",".join(STRATEGIES)):
            clients = workload.clients if entry.name == "federated" else ()
            overrides = (*entry.overrides(file_sync(workload.yaml, [])), *clients)
            yield _ddl("strategies", name, entry.title, 0, 2, *overrides, quick=quick)


def _layouts(names: Sequence[str], quick: bool) -> Iterator[Case]:
    """BERT's first steps on one rank, and with the model divided between two."""
    if "bert_trec" not in names:
        return
    short = ("train.epochs=null", f"train.steps={2 if quick else 20}", "train.eval_samples=256")
    for variant, ranks, share, overrides in (
        ("np=1", 1, 32, ()),
        ("np=2, parallel.tensor=2", 2, 32, ("parallel.tensor=2",)),
        ("np=2, parallel.pipeline=2", 2, 8, ("parallel.pipeline=2", "train.accumulate=4")),
    ):
        yield _ddl("layouts", "bert_trec", variant, 0, ranks, *short, *overrides, share=share, quick=False)
