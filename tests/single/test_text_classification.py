"""The source `text_classification`, the model `embedding_bag`, and predictions of runs with them."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import tokenizers
import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section, resolve
from hvd_train.config.schema import DataSection
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset
from hvd_train.data.hold_out import stratified_rows
from hvd_train.data.load import load
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.samples import SampleSplit
from hvd_train.data.spec import DataSpec
from hvd_train.data.texts.encoder import FEWEST, TextEncoder, shares
from hvd_train.data.tokenizers.bpe import create as bpe
from hvd_train.data.tokenizing.library import LibraryTokenizer
from hvd_train.errors import UserError
from hvd_train.rank.node import on_node
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.predicting.predictor import Predictor
from tests.bodies import trained, training
from tests.engines import threads

ROWS = [
    ("a cat sat", "pet"),
    ("a dog ran here", "pet"),
    ("rice and bread", "food"),
    ("soup", "food"),
    ("a cake", "food"),
]
WORDS = sorted({word for text, _ in ROWS for word in text.split()})
IDS = {"[PAD]": 7, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{word: 10 + i for i, word in enumerate(WORDS)}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer of words that puts [CLS] and [SEP] around texts, as that of a BERT does."""
    monkeypatch.chdir(tmp_path)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    made.enable_padding(length=50)
    made.enable_truncation(2)  # both are what a saved tokenizer may have, and neither counts here
    made.save("tokenizer.json")
    return tmp_path


def write(rows: Sequence[tuple[Any, ...]] = ROWS, name: str = "a.csv", names: Sequence[str] = ("text", "label")) -> str:
    ending = name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(arrow.table(columns), name)
        return name
    if ending == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    else:
        lines = [{"csv": ",", "tsv": "\t"}[ending].join(map(str, row)) for row in [names, *rows]]
    content = ("\n".join(lines) + "\n").encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def section(path: str | None = None, **options: Any) -> DataSection:
    values = {
        "name": "text_classification",
        "path": path or write(),
        "tokenizer": {"name": "file", "path": "tokenizer.json"},
        "test_fraction": 0.0,
        **options,
    }
    return read_section(DataSection, Document(values, "test"))


def read(path: str | None = None, node: Node = ALONE, fitted: Any = None, **options: Any) -> Dataset:
    return load(section(path, **options), 0, node, fitted)


def labels(rows: Sequence[Any], name: str = "a.csv", **options: Any) -> tuple[Any, list[float], DataSpec]:
    """Return the names of the classes, the targets in the order of the rows, and the description."""
    test = write([("a cat", label) for label in rows], f"test.{name}")
    made = read(write([("a cat", label) for label in rows], name), test_path=test, **options)
    targets = [made.test.items.item(i)["labels"].flatten().tolist()[0] for i in range(len(rows))]
    return made.preprocessing["target"]["classes"], targets, made.spec


def refusal(path: str | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_samples(name: str) -> None:
    made = read(write(name="train.csv"), test_path=write(name=name))
    assert made.preprocessing["target"] == {"name": "label", "classes": ["food", "pet"]}
    assert (made.spec.outputs, made.spec.task, dict(made.spec.vocabularies)) == (
        2,
        "classification",
        {"input_ids": 10 + len(WORDS)},
    )
    batch = made.test.batch(torch.tensor([1, 3]))
    ids = [2, *(IDS[word] for word in ["a", "dog", "ran", "here"]), 3]
    assert batch["input_ids"].tolist() == [ids, [2, IDS["soup"], 3, 7, 7, 7]]
    assert batch["attention_mask"].long().tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert "token_type_ids" not in batch


@pytest.mark.parametrize("length", [5, 6, 7, 128])
def test_pairs_are_those_of_transformers(length: int) -> None:
    transformers = pytest.importorskip("transformers")
    rows = [("a cat sat", "a dog ran here", "pet"), ("soup", "rice", "food")]
    path = write(rows, "pairs.jsonl", ["question", "answer", "label"])
    made = read(path, text=["question", "answer"], length=length, test_path=path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file="tokenizer.json", pad_token="[PAD]")
    expected = theirs(
        [row[0] for row in rows], [row[1] for row in rows], truncation=True, max_length=length, padding="longest",
        return_token_type_ids=True, return_tensors="pt",
    )  # fmt: skip
    batch = made.test.batch(torch.tensor([0, 1]))
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[name].long().tolist() == expected[name].tolist(), name


@pytest.mark.parametrize(
    ("sizes", "length", "expected"),
    [((3, 4), 7, (3, 4)), ((3, 4), 6, (3, 3)), ((9, 2), 6, (4, 2)), ((2, 9), 6, (2, 4)), ((9, 9), 5, (3, 2))],
)
def test_the_longer_text_of_a_pair_is_cut_first(sizes: tuple[int, int], length: int, expected: tuple[int, int]) -> None:
    assert shares(*sizes, length) == expected


def test_the_end_token_separates_pairs_of_a_tokenizer_without_special_tokens() -> None:
    tokenizer = bpe(lambda: iter(["ab"]), vocabulary=257)
    (a,), (b,) = tokenizer.encode(["a"]), tokenizer.encode(["b"])
    (sample,) = TextEncoder(tokenizer, 8, pair=True)([("a", "b")])
    assert list(sample.ids) == [*a, tokenizer.end, *b]
    assert list(sample.types) == [0, 0, 1]


@pytest.mark.parametrize(
    ("rows", "classes", "targets"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([5, 1, 10], [1, 5, 10], [1, 0, 2]),  # numbers in their order, not from 0
        ([-1, 1, 1], [-1, 1], [0, 1, 1]),
        (["NA", "null", "None"], ["NA", "None", "null"], [0, 2, 1]),
        (["1", "2", "x"], ["1", "2", "x"], [0, 1, 2]),
        ([0.5, 1, -2.5], [], [0.5, 1.0, -2.5]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labels(name: str, rows: list[Any], classes: list[Any], targets: list[float]) -> None:
    found = labels(rows, name)
    assert found[:2] == (classes, targets)
    assert (found[2].task, found[2].outputs) == (("classification", len(classes)) if classes else ("regression", 1))


def test_a_task_makes_numbers_of_integers_and_classes_of_texts() -> None:
    assert labels([3, 1, 2], task="regression")[:2] == ([], [3.0, 1.0, 2.0])
    assert "line 2: 'label': found a text (x), expected a finite number" in refusal(
        write([("a", "x")]), task="regression"
    )
    assert "found a number (0.5), expected" in refusal(write([("a", 1), ("b", 0.5)], "a.jsonl"), task="classification")
    assert "found an integer (1), expected a text as before" in refusal(write([("a", "x"), ("b", 1)], "a.jsonl"))


def test_words_that_tables_take_for_missing_values_are_texts() -> None:
    made = read(write([("NA", "x"), ("null", "y")]), tokenizer="bytes")
    assert sorted(bytes(made.train.items.item(i)["input_ids"].tolist()).decode() for i in range(2)) == ["NA", "null"]


def test_a_class_has_the_same_share_held_out_and_keeps_a_training_row() -> None:
    of = torch.tensor([0] * 50 + [1] * 10 + [2])
    train, test = stratified_rows(of, 0.2, seed=3)
    assert torch.bincount(of[test], minlength=3).tolist() == [10, 2, 0]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(61))
    assert torch.equal(stratified_rows(of, 0.2, seed=3)[1], test)
    assert not torch.equal(stratified_rows(of, 0.2, seed=4)[1], test)


def test_a_class_whose_rows_are_all_held_out_is_refused_or_stratified() -> None:
    path = write([("a cat", "pet"), *[("rice", "food")] * 9])
    seed = next(
        seed for seed in range(99) if 0 in torch.randperm(10, generator=torch.Generator().manual_seed(seed))[8:]
    )
    said = refusal(path, seed=seed, test_fraction=0.2)
    assert said == (
        "a.csv: 'label': all rows of pet are held out, so none is left for training; set data.stratify: true, "
        "or another data.seed"
    )
    made = read(path, seed=seed, test_fraction=0.2, stratify=True)
    assert sorted(made.train.labels.tolist()) == [0] * 7 + [1]
    assert "data.stratify: the labels are numbers" in refusal(write([("a", 0.5)]), stratify=True)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "x"), ("", "x")], "a.csv: line 3: 'text': an empty text, expected one"),
        (
            [("a", "x"), ("  ", "x"), ("b", "")],
            "a.csv: line 3: 'text': an empty text, expected one; 2 rows are like it",
        ),
        ([("a", "x"), ("b", "")], "a.csv: line 3: 'label': a missing label, expected one"),
    ],
)
def test_rows_without_a_text_or_a_label_are_damaged_samples(rows: list[Any], said: str) -> None:
    assert refusal(write(rows)) == said
    made = read(write(rows), on_error="skip")
    assert len(made.train.batch(torch.arange(len(rows)))["labels"]) == 1


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, {"text": "txt"}, "a.csv: no column 'txt'; did you mean 'text'? (choices: label, text)"),
        (None, {"target": "lable"}, "a.csv: no column 'lable'; did you mean 'label'?"),
        (None, {"length": 2}, "data.length: 2, expected more than the 2 special tokens of a text"),
        (None, {"path": "b.csv"}, "data.path: no file 'b.csv'; did you mean 'a.csv'?"),
        (None, {"text": ["text", "label"], "tokenizer": "bytes"}, "data.tokenizer: no token separates two texts"),
        (b"text,label\n", {}, "a.csv: no rows, expected at least one text with its label"),
        (b"text;label\na;x\n", {}, "a.csv: line 1 has no ',' but 1 ';' between names"),
        (b"text,label\na,b,x\n", {}, "a.csv: line 2 has 3 values, expected 2 as the header"),
        (b"text,label\na\xe9,x\n", {}, "a.csv: is not text in UTF-8; save the file in UTF-8"),
        (b"text,label\na,\n", {}, "a.csv: 'label' has no labels, expected one for each text"),
    ],
)
def test_bad_input_is_refused(content: bytes | None, options: dict[str, Any], said: str) -> None:
    write()
    if content is not None:
        Path("a.csv").write_bytes(content)
    assert said in refusal(**{"path": "a.csv", **options})


def test_other_bad_files_are_refused() -> None:
    Path("a.xlsx").touch()
    assert "a.xlsx: expected a file of texts and labels: .csv, .tsv" in refusal("a.xlsx")
    assert "a.parquet: row 0 (from 0): column 'text' has values of type int64" in refusal(
        write([(1, "x")], "a.parquet")
    )
    assert "a.jsonl: line 1: 'text': found int, expected a text" in refusal(write([(1, "x")], "a.jsonl"))
    test = write([("a", "fod")], "test.csv")
    assert (
        "test.csv: line 2: 'label': found 'fod', expected a class of the training rows; did you mean 'food'?"
        in refusal(write(), test_path=test)
    )


def test_a_text_of_a_million_characters_is_cut_in_bounded_time() -> None:
    write()
    path = write([("cat " * 250_000, "pet"), ("a" * 10**6, "food")], "long.csv")
    began = time.process_time()
    for tokenizer in ({"name": "file", "path": "tokenizer.json"}, {"name": "bpe", "vocabulary": 300}):
        made = read(path, tokenizer=tokenizer, length=16)
        assert max(made.train.items.lengths.tolist()) == 16
    assert time.process_time() - began < 5
    assert any("the rest of which is cut; the longest has 1,000,000 characters" in text for text in made.warnings)


def test_users_hear_of_cut_texts_unknown_words_and_texts_that_come_twice() -> None:
    path = write([("a cat sat on", "pet"), ("x y z", "food"), ("a dog", "pet")])
    warnings = read(path, length=4, test_path=path).warnings
    assert (
        "a.csv: 2 of 3 texts have more than data.length: 4 tokens, the rest of which is cut; the longest has 12 characters"
        in warnings
    )
    assert any("of the tokens are unknown to the tokenizer" in text for text in warnings)
    assert any("3 of 3 held-out texts are also training texts" in text for text in warnings)
    assert any(
        "3 classes among 3 training rows" in text for text in read(write([("a", "x"), ("b", "y"), ("c", "z")])).warnings
    )


def test_lengths_are_known_without_any_sample_and_items_are_pickled() -> None:
    made = read(bucket=2)
    again = pickle.loads(pickle.dumps(made.train.items))
    assert sorted(made.train.lengths.tolist()) == [3, 4, 5, 5, 6]
    assert again.item(2)["input_ids"].tolist() == made.train.items.item(2)["input_ids"].tolist()


def test_the_ranks_of_a_host_share_the_tokens() -> None:
    write()
    expected = read("a.csv")

    def run(comm: Communicator) -> tuple[int, list[list[int]]]:
        made = on_node(comm, lambda node: read("a.csv", node))
        items = made.train.items
        return os.stat(items.ids.file.path).st_ino, [items.item(i)["input_ids"].tolist() for i in range(len(items))]

    (file, first), (other, second) = threads.run(2, run)
    assert file == other
    assert first == second == [expected.train.items.item(i)["input_ids"].tolist() for i in range(5)]


def test_options_of_pad_are_kept_beside_those_of_the_tokenizer() -> None:
    batch = read(collate={"name": "pad", "multiple": 8, "side": "left"}).train.batch(torch.tensor([0]))
    assert batch["input_ids"].shape == (1, 8)
    assert batch["input_ids"][0, 0] == IDS["[PAD]"]
    assert batch["attention_mask"].sum() == (batch["input_ids"] != IDS["[PAD]"]).sum()
    named = read(collate={"name": "pad", "mask": {"seen": "input_ids"}}).train.batch(torch.tensor([0]))
    assert [*named] == ["input_ids", "labels", "seen"]


def test_other_files_are_encoded_as_in_training() -> None:
    """A new file has one class, other words, and a label that looks like a number."""
    first = read(write([("a cat", "1"), ("rice", "x")]), tokenizer={"name": "bpe", "vocabulary": 260})
    fitted = json.loads(json.dumps(preprocessing.document(first)))
    again = read(write([("a cat", "1")], "new.csv"), fitted=fitted, tokenizer={"name": "bpe", "vocabulary": 260})
    assert again.train.labels.tolist() == [0]
    assert again.spec == first.spec
    assert preprocessing.document(again)["tokenizer"] == fitted["tokenizer"]


def test_special_tokens_and_padding_of_a_tokenizer_are_found() -> None:
    made = LibraryTokenizer(tokenizers.Tokenizer.from_file("tokenizer.json"), None)
    assert (made.pad, made.unknown, made.special(pair=False), made.special(pair=True)) == (7, 1, 2, 3)
    assert FEWEST > 1000


def bag(**options: Any) -> Any:
    spec = DataSpec((), 3, "classification", vocabularies={"input_ids": 20})
    return plugins.create(
        "hvd_train.models.zoo",
        "embedding_bag",
        spec,
        **{"width": 4, "hidden": [5], "dropout": 0.0, "sparse": False, **options},
    )


def test_a_bag_is_the_mean_of_its_tokens_without_padding() -> None:
    model = bag()
    ids = torch.tensor([[3, 4, 0], [5, 0, 0]])
    expected = model.head(torch.stack([model.embeddings.weight[[3, 4]].mean(0), model.embeddings.weight[5]]))
    torch.testing.assert_close(model(ids, ids > 0), expected)
    torch.testing.assert_close(model(ids[:, :1]), model.head(model.embeddings.weight[[3, 5]]))
    assert not torch.isnan(model(ids, torch.zeros(2, 3))).any()


def test_a_bag_has_sparse_gradients_if_asked_and_refuses_other_data() -> None:
    model = bag(sparse=True)
    model(torch.tensor([[3, 4]])).sum().backward()
    assert model.embeddings.weight.grad.coalesce().indices().tolist() == [[3, 4]]
    for spec in (DataSpec((3,), 3, "classification"), DataSpec((8,), 20, "language")):
        with pytest.raises(
            UserError, match="model 'embedding_bag' takes texts, such as those of 'text_classification'"
        ):
            plugins.create("hvd_train.models.zoo", "embedding_bag", spec, width=4, hidden=[], dropout=0.0, sparse=False)
    texts = DataSpec((), 3, "classification", vocabularies={"input_ids": 20})
    with pytest.raises(UserError, match=r"model 'linear' takes .* not classification data with input_ids"):
        plugins.create("hvd_train.models.zoo", "linear", texts)


def test_two_ranks_equal_one_process_in_buckets() -> None:
    rows = [(" ".join(np.random.default_rng(i).choice(WORDS, i % 7 + 1)), i % 2) for i in range(60)]
    path = write(rows, "many.csv")

    def config(size: int) -> Any:
        data = {"name": "text_classification", "path": path, "tokenizer": {"name": "file", "path": "tokenizer.json"},
                "batch_size": 8 // size, "bucket": 3, "target": None}  # fmt: skip
        return training.configuration(
            data=data, model={"name": "embedding_bag", "width": 4, "target": None}, train={"epochs": 2}
        )

    assert isinstance(read(path, bucket=3).train, SampleSplit)
    config(1), config(2)  # threads cannot parse plugins
    expected = training.trained(SingleCommunicator(), config(1))
    training.assert_close(threads.run(2, lambda comm: training.trained(comm, config(2)))[0], expected)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(load_model(find_run(trained.labelled_texts(tmp_path_factory.mktemp("texts")))))


def test_predictions_are_those_of_the_samples_of_training(predictor: Predictor) -> None:
    texts = ["my old cat", "here is the soup"]
    assert [answer["class"] for answer in predictor.predict(texts)] == ["animal", "food"]
    together, alone = predictor.predict(texts), [predictor.predict([text])[0] for text in texts]
    assert [row["probability"] for row in together] == pytest.approx([row["probability"] for row in alone])
    assert predictor.predict([{"text": texts[0], "label": "?"}]) == alone[:1]


@pytest.mark.parametrize("name", ["new.csv", "new.tsv", "new.jsonl", "new.parquet"])
def test_new_rows_are_read_from_every_format_in_blocks(predictor: Predictor, name: str) -> None:
    path = write([(f"cat {i}", i) for i in range(70)], name, ["text", "id"])
    blocks = list(predictor.input.blocks([path], ["id"]))
    assert [len(block.records) for block in blocks] == [64, 6]
    assert blocks[1].records[0]["text"] == "cat 64"
    assert [int(value if isinstance(value, int) else value.as_py()) for value in blocks[1].beside["id"]] == list(
        range(64, 70)
    )
    assert predictor.encode(blocks[1].records)["attention_mask"].shape[0] == 6


def test_lines_are_texts_and_bad_records_are_refused(predictor: Predictor) -> None:
    Path("new.txt").write_text("a cat\n\nmy soup\n")
    (block,) = predictor.input.blocks(["new.txt"])
    assert [answer["class"] for answer in predictor.predict(block.records)] == ["animal", "food"]
    Path("new.csv").write_text("text,id\nNA,1\n")
    (block,) = predictor.input.blocks(["new.csv"])
    assert block.records == [{"text": "NA"}]
    for record, said in (
        (" ", "record 0 (from 0): an empty text at 'text'"),
        ({"x": 1}, "found no value at 'text'"),
        (3, "found int"),
    ):
        with pytest.raises(UserError) as refused:
            predictor.encode([record])
        assert said in str(refused.value)
    with pytest.raises(UserError, match="no column 'text', which is an input of the run"):
        list(predictor.input.blocks([write([("a", 1)], "b.csv", ["texts", "id"])]))
    predictor.encode(["cat " * 500])
    assert predictor.input.warnings() == ["1 texts have more than 128 tokens, the rest of which is cut"]


def test_resolving_needs_no_heavy_import() -> None:
    values = {"model": "embedding_bag", "data": {"name": "text_classification", "path": "a.csv", "tokenizer": "bpe"}}
    assert resolve(Document(values, "test")).data.options["length"] == 128
