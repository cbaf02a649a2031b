"""Pairs of texts: the source `translation`, what a run of it predicts, and how it is evaluated."""

from __future__ import annotations

import csv
import io
import json
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.data import catalogues
from cli.data.sets import messages
from cli.trained.evaluate import text as shown
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.load import load
from hvd_train.errors import UserError
from hvd_train.rank.node import on_node
from hvd_train.rank.task import TaskContext
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.evaluating.nearest import nearest, trigrams
from hvd_train.trained.evaluating.text_scores import chrf, scores
from hvd_train.trained.evaluating.translations import compared
from hvd_train.trained.generating.search import Search
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.predicting.request import Request
from hvd_train.trained.predicting.stream import predict
from hvd_train.trained.tasks import evaluate
from tests.bodies import trained
from tests.engines import threads

NOUNS = {"file": "fichier", "page": "page", "user": "utilisateur", "event": "événement", "room": "salle", "name": "nom"}
VERBS = {"Open": "Ouvrir", "Close": "Fermer", "Delete": "Supprimer", "Show": "Afficher", "Add": "Ajouter"}
PAIRS = [
    (f"{verb} {number}{noun}", f"{of_verb} {other}{of_noun}")
    for verb, of_verb in VERBS.items()
    for noun, of_noun in NOUNS.items()
    for number, other in (("the ", "le "), ("one ", "un "), ("", ""))
]
TOKENIZER = {"name": "bpe", "vocabulary": 320}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(name: str = "pairs.tsv", pairs: Any = PAIRS, header: tuple[str, ...] = ("source", "target")) -> str:
    with open(name, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if name.endswith(".csv") else "\t", lineterminator="\n")
        writer.writerows([header, *pairs])
    return name


def data(**options: Any) -> Any:
    section = {"name": "translation", "tokenizer": TOKENIZER, **options}
    return load(read_section(DataSection, Document(section, "test")))


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as raised:
        data(**options)
    return str(raised.value)


def texts(split: Any) -> list[tuple[str, str]]:
    return [split.items.texts(i) for i in range(len(split))]


def test_a_sample_has_tokens_of_both_sides_and_the_target_shifted_by_one():
    made = data(path=table(), test_fraction=0.2)
    end = made.train.items.end
    decode = __import__("tokenizers").Tokenizer.from_str(made.preprocessing["tokenizer"]["json"]).decode
    for number, (source, target) in enumerate(texts(made.train)):
        sample = made.train.items.item(number)
        assert decode(sample["input_ids"].tolist()[:-1]) == source
        assert decode(sample["labels"].tolist()[:-1]) == target
        assert sample["input_ids"][-1] == sample["labels"][-1] == sample["decoder_input_ids"][0] == end
        assert torch.equal(sample["decoder_input_ids"][1:], sample["labels"][:-1])
        assert sample["attention_mask"].tolist() == [1] * len(sample["input_ids"])
    assert (made.spec.task, made.spec.input_shape) == ("seq2seq", (128,))
    assert made.spec.vocabularies == dict.fromkeys(("input_ids", "decoder_input_ids"), made.spec.outputs)
    assert sorted(texts(made.train) + texts(made.test)) == sorted(PAIRS)
    assert len(made.test) == 18


def test_batches_are_padded_without_being_asked_for():
    made = data(path=table(), bucket=4)
    batch = made.train.batch(torch.arange(20))
    longest = [max(len(made.train.items.item(i)[key]) for i in range(20)) for key in ("input_ids", "labels")]
    assert [batch[key].shape[1] for key in ("input_ids", "labels")] == longest
    for i in range(20):
        sample = made.train.items.item(i)
        assert batch["attention_mask"][i].sum() == len(sample["input_ids"])
        assert torch.equal(batch["labels"][i][batch["labels"][i] != -100], sample["labels"])
        assert (batch["input_ids"][i][len(sample["input_ids"]) :] == 0).all()
    assert made.train.lengths.tolist() == [
        len(made.train.items.item(i)["input_ids"]) + len(made.train.items.item(i)["labels"]) - 2
        for i in range(len(made.train))
    ]


def test_every_format_gives_the_same_pairs():
    rows = [{"a": {"en": source}, "b": target} for source, target in PAIRS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("a.en").write_text("".join(f"{source}\r\n" for source, _ in PAIRS), encoding="utf-8")
    Path("a.fr").write_text("\n".join(target for _, target in PAIRS), encoding="utf-8")
    expected = texts(data(path=table(), test_fraction=0.2).test)
    for options in (
        {"path": table("pairs.csv")},
        {"path": "pairs.jsonl", "source_column": "a.en", "target_column": "b"},
        {"path": ["a.en", "a.fr"]},
        {"path": table("odd.tsv", header=("x", "y")), "source_column": "x", "target_column": "y"},
    ):
        assert texts(data(**options, test_fraction=0.2).test) == expected


def test_words_that_stand_for_missing_numbers_are_texts():
    odd = [("NA", "null"), ("None", "Aucun"), ('say "hi"', "dites\tbonjour"), ("two\nlines", "deux\nlignes")]
    made = data(path=table(pairs=[*PAIRS, *odd]), test_fraction=0)
    assert set(odd) <= set(texts(made.train))


def test_rows_are_held_out_by_a_column_and_by_files():
    rows = [(*pair, "b" if i % 3 else "a") for i, pair in enumerate(PAIRS)]
    made = data(path=table(pairs=rows, header=("source", "target", "package")), test_rows={"package": "a"})
    assert sorted(texts(made.test)) == sorted((a, b) for a, b, package in rows if package == "a")
    assert len(made.train) == len(PAIRS) - len(made.test)
    message = refusal(path="pairs.tsv", test_rows={"package": "c"})
    assert message == "data.test_rows: no row of pairs.tsv has 'c' in column 'package'"
    Path("a.en").write_text("Open the door\n")
    Path("a.fr").write_text("Ouvrir la porte\n")
    made = data(path="pairs.tsv", test_path={"main": table("other.csv", PAIRS[:4]), "doors": ["a.en", "a.fr"]})
    assert texts(made.others["doors"]) == [("Open the door", "Ouvrir la porte")]
    assert made.warnings == ("other.csv: 4 of 4 held-out pairs are training pairs too, which flatters the metrics",)


def test_a_pair_that_stands_twice_is_used_once_and_lengths_are_limits():
    made = data(path=table(pairs=[*PAIRS, *PAIRS[:5]]), test_fraction=0.1)
    assert sorted(texts(made.train) + texts(made.test)) == sorted(PAIRS)
    assert made.warnings == ("pairs.tsv: 5 pairs stand there more than once; each one is used once",)
    made = data(path="pairs.tsv", min_words=2, max_words=2, test_fraction=0)
    assert {len(text.split()) for pair in texts(made.train) for text in pair} == {2}
    assert "no pair has from 9 to 10 words" in refusal(path="pairs.tsv", min_words=9, max_words=10)


def test_long_texts_are_cut_with_a_warning():
    table(pairs=[*PAIRS, ("word " * 100, "mot")])
    made = data(path="pairs.tsv", length=16, test_fraction=0)
    longest = made.train.items.item(len(PAIRS) if len(made.train) > len(PAIRS) else -1)
    assert max(len(made.train.items.item(i)["input_ids"]) for i in range(len(made.train))) == 16
    assert longest["input_ids"][-1] == made.train.items.end
    (warning,) = made.warnings
    assert warning.startswith("pairs.tsv: 1 sources and 0 targets are cut to 16 tokens; the longest has ")


def test_bad_pairs_are_refused_in_one_sentence():
    table()
    assert "no column 'sourc'; did you mean 'source'?" in refusal(path="pairs.tsv", source_column="sourc")
    table("empty.tsv", [*PAIRS[:3], ("Open", "  ")])
    message = refusal(path="empty.tsv")
    assert message.startswith("empty.tsv: line 5: column 'target' is empty, expected a text")
    Path("a.en").write_text("one\ntwo\nthree\n")
    Path("a.fr").write_text("un\ndeux\n")
    assert refusal(path=["a.en", "a.fr"]).startswith("a.en has 3 lines and a.fr has 2, expected equal numbers")
    Path("a.fr").write_text("un\n\ntrois\n")
    assert refusal(path=["a.en", "a.fr"]).startswith("a.fr: line 2: the text is empty")
    Path("a.fr").write_bytes(b"un\n\xff\ntrois\n")
    assert "a.fr: byte 3 is 0xff, expected text in UTF-8" in refusal(path=["a.en", "a.fr"])
    assert "two files have no column 'package'" in refusal(path=["a.en", "a.fr"], test_rows={"package": 1})
    Path("a.en").write_text("")
    Path("a.fr").write_text("")
    assert refusal(path=["a.en", "a.fr"]) == "a.en: is empty, expected at least one line"
    assert "no file 'gone.tsv'" in refusal(path="gone.tsv")
    assert "'bytes' has no token that ends a text" in refusal(path="pairs.tsv", tokenizer="bytes")
    assert "data.begin: no token '<pad>' in the vocabulary" in refusal(path="pairs.tsv", begin="<pad>")
    assert "test_fraction" in refusal(path="pairs.tsv", test_fraction=0.999)


def test_ranks_of_a_host_share_the_tokens():
    table()
    section = read_section(
        DataSection, Document({"name": "translation", "path": "pairs.tsv", "tokenizer": TOKENIZER}, "t")
    )
    alone = load(section)
    for made in threads.run(3, lambda comm: on_node(comm, lambda node: load(section, 0, node))):
        assert made.input == alone.input
        assert made.preprocessing == alone.preprocessing
        for split in ("train", "test"):
            assert texts(getattr(made, split)) == texts(getattr(alone, split))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned most pairs."""
    made = tmp_path_factory.mktemp("translation")
    path = str(made / "pairs.tsv")
    table(path)
    return trained.train(
        made,
        {
            "model": {"name": "seq2seq", "layers": 1, "width": 32, "dropout": 0.0},
            "data": {"name": "translation", "path": path, "tokenizer": TOKENIZER, "batch_size": 32, "bucket": 2},
            "optimizer": {"name": "AdamW", "lr": 0.01},
            "train": {"steps": 40, "eval_every": 40, "loss": {"name": "cross_entropy", "label_smoothing": 0.1}},
        },
    )


def predictions(run: Path, *paths: str, keep: tuple[str, ...] = (), **search: Any) -> list[dict[str, str]]:
    predictor = Predictor(load_model(find_run(run)), search=Search(**search))
    Path("out.csv").unlink(missing_ok=True)
    predict(predictor, Request("", list(paths), "out.csv", "csv", [], list(keep), 1, None))
    with open("out.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_translates_tables_and_lines(run: Path) -> None:
    rows = predictions(run, table("new.tsv", [(a, b) for a, b in PAIRS[:30]]), keep=("target",))
    assert sum(row["translation"] == row["target"] for row in rows) > 20
    assert all(row["ended"] == "true" and float(row["log_probability"]) < 0 for row in rows)
    Path("lines.txt").write_text("".join(f"{a}\n" for a, _ in PAIRS[:30]))
    Path("lines.jsonl").write_text("".join(json.dumps({"source": a}) + "\n" for a, _ in PAIRS[:30]))
    for name in ("lines.txt", "lines.jsonl"):
        again = predictions(run, name)
        assert [row["translation"] for row in again] == [row["translation"] for row in rows]
    assert len(predictions(run, "lines.txt", beams=3)) == 30
    drawn = [predictions(run, "lines.txt", sample=True, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    Path("lines.txt").write_text("Open the file\n \nword\n")
    assert len(predictions(run, "lines.txt")) == 2
    with pytest.raises(UserError, match=r"record 1.*an empty text"):
        Predictor(load_model(find_run(run))).predict(["Open", " "])
    with pytest.raises(UserError, match="no column 'source'"):
        predictions(run, table("odd.tsv", header=("a", "b")))


def evaluated(folder: Path, comm: Communicator | None = None, *data: str) -> dict[str, Any]:
    found = find_run(folder, data)
    quiet: Any = SimpleNamespace(errors=2, warn=print)
    context = TaskContext(found.config, comm or SingleCommunicator(), found.checkpoint, found.folder, quiet)
    return evaluate.create(split="test").run(context)


def test_an_evaluation_quotes_simple_answers_beside_the_model_on_any_number_of_ranks(run: Path) -> None:
    alone = evaluated(run)
    rows = alone["translations"]["rows"]
    assert [(row["answer"]) for row in rows] == 2 * ["model", "nearest training source", "copy of the source"]
    assert rows[0]["number"] == 9
    assert alone["translations"]["examples"][0].keys() == {"source", "target", "model", "nearest", "similarity"}
    both = threads.run(2, lambda comm: evaluated(run, comm))
    assert both[0]["translations"] == alone["translations"]
    assert "translations" not in both[1]
    page = shown.text({**alone, "checkpoint": "c"}, 120)
    assert "nearest training source" in page
    assert "unlike training" in page
    other = evaluated(run, None, f"path={table('new.tsv', PAIRS[:9])}", "test_path=new.tsv")
    assert [row["answer"] for row in other["translations"]["rows"]] == ["model", "copy of the source"]
    assert "The training pairs of the run are not at hand" in shown.text({**other, "checkpoint": "c"}, 120)


def test_the_nearest_text_has_the_largest_share_of_trigrams():
    assert trigrams("Ab") == {" ab", "ab "}
    at, values = nearest(["Open the file", "xyz", "page"], ["Close the page", "Open a file", "Page", "page"])
    assert at.tolist() == [1, 0, 2]
    shared = trigrams("open the file") & trigrams("open a file")
    assert values[0] == 2 * len(shared) / (len(trigrams("open the file")) + len(trigrams("open a file")))
    assert values[1:].tolist() == [0.0, 1.0]


def test_scores_are_those_of_torchmetrics():
    library = pytest.importorskip("torchmetrics.functional.text")
    answers, targets = [a for a, _ in PAIRS], [b for _, b in PAIRS]
    expected = float(library.chrf_score(answers, [[t] for t in targets], n_word_order=0))
    assert chrf(answers, targets) == pytest.approx(expected, abs=1e-6)
    targets = [f"{target} de la page du site" for target in targets]
    assert scores(targets, targets) == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact": 1.0}
    assert scores([], [])["bleu"] is None


def test_only_sources_unlike_training_are_in_the_second_part():
    training = [("Open the file", "Ouvrir le fichier"), ("Close the page", "Fermer la page")]
    pairs = [("Open the files", "Ouvrir les fichiers"), ("Something quite different", "Tout autre chose")]
    rows = compared(pairs, ["Ouvrir les fichiers", "Rien"], training)["rows"]
    assert [(row["number"], row["answer"], row["exact"]) for row in rows] == [
        (2, "model", 0.5),
        (2, "nearest training source", 0.0),
        (2, "copy of the source", 0.0),
        (1, "model", 0.0),
        (1, "nearest training source", 0.0),
        (1, "copy of the source", 0.0),
    ]


def compiled(messages: dict[str, str], order: str = "<") -> bytes:
    """The content of a .mo file."""
    texts = [(source.encode(), target.encode()) for source, target in sorted({"": "Header: x\n", **messages}.items())]
    at, tables, body = 28 + 16 * len(texts), [b"", b""], b""
    for side in (0, 1):
        for pair in texts:
            tables[side] += struct.pack(f"{order}2I", len(pair[side]), at + len(body))
            body += pair[side] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(texts), 28, 28 + 8 * len(texts), 0, 0)
    return head + tables[0] + tables[1] + body


def archive(**files: bytes) -> zipfile.ZipFile:
    stored = zipfile.ZipFile(io.BytesIO(), "w")
    for name, content in files.items():
        stored.writestr(name, content)
    return stored


PO = rb"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#, fuzzy
msgid "Not sure"
msgstr "Pas vrai"

#: file.py:3
#, python-format
msgctxt "menu"
msgid ""
"Two "
"\"parts\"\n"
msgstr "Deux \"parties\"\n"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"

msgid "Untranslated"
msgstr ""

#~ msgid "Old"
#~ msgstr "Vieux"
"""


@pytest.mark.parametrize("order", ["<", ">"])
def test_catalogues_give_pairs_without_doubles_plurals_and_formats(order):
    first = {
        "Open": "Ouvrir",
        "menu\x04Close": "Fermer",
        "%(n)s": "%(n)s !",
        "%d day\0%d days": "%d jour\0%d jours",
        "Two\n lines": "Deux\tlignes",
        "<b>{x}</b>": "<b>{x}</b>",
    }
    packages = {
        "one": archive(
            **{"one/locale/fr/LC_MESSAGES/a.mo": compiled(first, order), "one/locale/fr_FR/LC_MESSAGES/a.mo": b"no"}
        ),
        "two": archive(
            **{
                "two/fr_FR/LC_MESSAGES/b.mo": compiled({"Open": "Ouvrir", "Close": "Clore"}),
                "two/fr_FR/LC_MESSAGES/b.po": b"not read",
                "two/fr_FR/LC_MESSAGES/c.po": PO,
                "two/de/LC_MESSAGES/b.mo": compiled({"Open": "Oeffnen"}),
            }
        ),
    }
    assert list(catalogues.pairs(packages, "fr")) == [
        ("%d day", "%d jour", "one"),
        ("Open", "Ouvrir", "one"),
        ("Two lines", "Deux lignes", "one"),
        ("Close", "Fermer", "one"),
        ("Close", "Clore", "two"),
        ('Two "parts"', 'Deux "parties"', "two"),
        ("%d file", "%d fichier", "two"),
    ]
    for content, message in ((b"PK", "not a compiled catalogue"), (compiled(first)[:40], "not whole")):
        with pytest.raises(ValueError, match=message):
            list(catalogues.compiled(content))


def test_the_set_of_messages_has_a_table_for_each_language(tmp_path):
    made = messages.create()
    archives = [archive(**{"a/locale/es/LC_MESSAGES/a.mo": compiled({"Open": "Abrir"})}) for _ in made.wheels]
    made.write(archives, tmp_path)
    assert (tmp_path / "en-es.tsv").read_text() == "source\ttarget\tpackage\nOpen\tAbrir\tindico\n"
    assert (tmp_path / "en-fr.tsv").read_text() == "source\ttarget\tpackage\n"
