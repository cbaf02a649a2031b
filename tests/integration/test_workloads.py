"""Every workload of `examples` trains on a slice in its format, equally on one and two ranks.

`benchmarks/workloads` runs them in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.workloads.cases import WORKLOADS
from cli.arguments.configuration import load
from hvd_train.comm.communicator import Communicator
from tests.bodies import training as body
from tests.engines import threads
from tests.integration.ddl import ROOT

WORDS = (
    "who", "what", "where", "when", "why", "how", "many", "much", "long", "far", "is", "the", "of", "a", "in", "name",
    "city", "river", "war", "book", "free", "prize", "call", "now",
)  # fmt: skip
CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def texts(number: int) -> Iterator[str]:
    generator = np.random.default_rng(0)
    return (f"{' '.join(generator.choice(WORDS, 3 + i % 9))} {i} ?" for i in range(number))


def write_questions(folder: Path) -> list[str]:
    lines = (f"{text},{CLASSES[i % 6]},{CLASSES[i % 6]}:other" for i, text in enumerate(texts(60)))
    return _lines(folder / "trec.csv", "text,label,fine", lines)


def write_messages(folder: Path) -> list[str]:
    lines = (f"{text},{'spam' if i % 4 == 0 else 'ham'}" for i, text in enumerate(texts(60)))
    return [*_lines(folder / "sms_spam.csv", "text,label", lines), *_model(folder)]


def write_ratings(folder: Path) -> list[str]:
    generator = np.random.default_rng(0)
    pairs = [(user, item) for user in range(20) for item in generator.permutation(30)[:12]]
    lines = (f"{user},{item},{1 + (user * item) % 5},{n}" for n, (user, item) in enumerate(pairs))
    return [*_lines(folder / "ratings.csv", "user,item,rating,time", lines), "model.width=4"]


def write_speech(folder: Path) -> list[str]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 60)
    values = generator.standard_normal((lengths.sum(), 13)).astype(np.float32)
    np.savez(folder / "digits.npz", X=values, y=np.arange(60) % 10, lengths=lengths)
    return [f"data.path={folder / 'digits.npz'}"]


def write_images(folder: Path) -> list[str]:
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 28, 28), np.uint8)
    np.savez(folder / "mnist_5k.npz", x=images, y=np.arange(60) % 10)
    return [f"data.path={folder / 'mnist_5k.npz'}"]


def write_pairs(folder: Path) -> list[str]:
    lines = (f"{text}\t{text.replace('the', 'le').replace(' is ', ' est ')}\tindico" for text in texts(80))
    tiny = ["model.layers=1", "model.width=16", "model.dropout=0", "data.tokenizer.vocabulary=300"]
    return [*_lines(folder / "en-fr.tsv", "source\ttarget\tpackage", lines), *tiny]


def _lines(file: Path, head: str, lines: Iterator[str]) -> list[str]:
    file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return [f"data.path={file}"]


def _model(folder: Path) -> list[str]:
    """Write a BERT of random weights with its tokenizer, in the files of a pretrained one."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *WORDS, *map(str, range(100))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape, **still)).save_pretrained(folder)
    return [f"model.pretrained={folder}"]


WRITERS: dict[str, Callable[[Path], list[str]]] = {
    "trec_bag": lambda folder: [*write_questions(folder), "model.dropout=0"],
    "bert_trec": lambda folder: [*write_questions(folder), *_model(folder)],
    "sms_spam": write_messages,
    "movielens": write_ratings,
    "movielens_ranking": write_ratings,
    "spoken_digits": write_speech,
    "mnist_cnn": write_images,
    "translate": write_pairs,
    "linear_regression": lambda folder: [f"data.path={ROOT / 'examples' / 'line.csv'}"],
}
"""What writes the data of an example, and returns the overrides that name them."""


def test_every_workload_and_every_example_of_fetched_data_has_a_slice() -> None:
    fetched = {file.stem for file in (ROOT / "examples").glob("*.yaml") if "fetched:" in file.read_text()}
    assert set(WRITERS) == {workload.example for workload in WORKLOADS.values()} | fetched


@pytest.mark.parametrize("name", WRITERS)
def test_a_workload_learns_on_a_slice_equally_on_one_and_two_ranks(name: str, tmp_path: Path) -> None:
    overrides = [*WRITERS[name](tmp_path), "train.epochs=null", "train.steps=4"]

    def trained(comm: Communicator) -> tuple[dict[str, Any], list[float]]:
        batch = f"data.batch_size={8 // comm.size}"
        config = load(ROOT / "examples" / f"{name}.yaml", [*overrides, batch])
        log = body.Log()
        job = body.trainer(comm, config, sinks=[log])
        job.run()
        return log.evaluated[-1], [line["loss"] for line in log.trained]

    (alone,) = threads.run(1, trained)
    first, _ = threads.run(2, trained)
    metrics = {metric.name for workload in WORKLOADS.values() if workload.example == name and not workload.evaluated
               for metric in workload.metrics}  # fmt: skip
    assert metrics <= alone[0].keys()
    assert first[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4)
