"""Predictions equal those of evaluations, for every kind of data, from data.json alone."""

import csv
import json
import wave
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from hvd_train.comm.engines.single import create as single
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.data import preprocessing
from hvd_train.data.tokenizing.saved import decoder, described
from hvd_train.errors import UserError
from hvd_train.rank.build import build
from hvd_train.saved.model import LoadedModel
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.predicting.request import Request
from hvd_train.trained.predicting.stream import predict


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Run:
    """A model before its first step, with what its run folder says."""

    def __init__(self, data: dict, top: int = 1, **sections) -> None:
        self.config = resolve(Document({"data": data, "model": "mlp", "train": {"epochs": 1}, **sections}, "test"))
        self.built = build(self.config, single())
        self.built.model.eval()
        document = json.loads(json.dumps(preprocessing.document(self.built.data)))
        loaded = LoadedModel(self.built.model, self.built.data.spec, self.config, document)
        self.document, self.predictor = document, Predictor(loaded, top=top)

    @torch.no_grad()
    def expected(self, split=None) -> torch.Tensor:
        """The outputs of an evaluation of all held-out samples."""
        split = self.built.data.test if split is None else split
        return self.built.model(split.batch(torch.arange(len(split)))[0])

    def refusal(self, records) -> str:
        with pytest.raises(UserError) as caught:
            self.predictor.predict(records)
        return str(caught.value)


CITIES = ("Bonn", "Köln", "Ulm")


def table(path: str, rows: int = 40, seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    made = [
        {
            "age": int(generator.integers(20, 60)),
            "income": "" if i % 7 == 3 else f"{generator.normal(3e4, 1e4):.2f}",
            "city": CITIES[int(generator.integers(3))],
            "kind": "yes" if generator.random() < 0.5 else "no",
        }
        for i in range(rows)
    ]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, made[0])
        writer.writeheader()
        writer.writerows(made)
    return made


TABLE = {
    "name": "csv", "path": "a.csv", "target": "kind", "standardise": True, "categorical": "onehot", "missing": "mean"
}  # fmt: skip


def of_blocks(run: Run, *paths: str) -> torch.Tensor:
    """The inputs that the records of files become."""
    return torch.cat([run.predictor.encode(block.records, block.place) for block in run.predictor.input.blocks(paths)])


@pytest.mark.parametrize("categorical", ["onehot", "code"])
def test_rows_of_a_table_become_the_inputs_of_training(categorical):
    table("a.csv")
    held_out = table("b.csv", seed=1)
    run = Run({**TABLE, "categorical": categorical, "test_path": "b.csv"})
    x = run.built.data.test.batch(torch.arange(40))[0]
    assert torch.equal(of_blocks(run, "b.csv"), x)
    as_json = [{**row, "income": float(row["income"]) if row["income"] else None} for row in held_out]
    assert torch.equal(run.predictor.encode(as_json), x)
    probabilities = run.expected().softmax(1)
    answers = run.predictor.predict(as_json)
    assert [a["class"] for a in answers] == [["no", "yes"][i] for i in probabilities.argmax(1)]
    assert [a["probability"] for a in answers] == probabilities.max(1).values.tolist()


def test_a_regression_answers_under_the_name_of_the_target():
    table("a.csv")
    run = Run({**TABLE, "target": "age", "task": "regression", "test_path": "a.csv", "features": ["city"]})
    answers = run.predictor.predict([{"city": city} for city in CITIES])
    assert [list(answer) for answer in answers] == [["age"]] * 3
    x = run.predictor.encode([{"city": city} for city in CITIES])
    with torch.no_grad():
        assert [answer["age"] for answer in answers] == run.built.model(x)[:, 0].tolist()


def test_arrays_of_a_file_and_of_lists():
    x = np.random.default_rng(0).normal(size=(30, 1, 4, 4))
    np.savez("a.npz", x=x, y=np.arange(30) % 3)
    run = Run({"name": "npz", "path": "a.npz"}, top=2)
    assert torch.equal(of_blocks(run, "a.npz"), torch.from_numpy(x).float())
    answers = run.predictor.predict(x.tolist())
    with torch.no_grad():
        best = run.built.model(torch.from_numpy(x).float()).softmax(1).topk(2)
    assert [[t["class"] for t in a["top"]] for a in answers] == best.indices.tolist()
    assert [[t["probability"] for t in a["top"]] for a in answers] == best.values.tolist()
    assert "(1, 4), expected (1, 4, 4)" in run.refusal([[[1, 2, 3, 4]]])


def predictions(run: Run, *inputs: str, output: str = "out.csv", keep: tuple[str, ...] = (), tokens: int = 4) -> list:
    """The rows that the command writes for inputs."""
    request = Request("", list(inputs), output, output.rpartition(".")[2], [], list(keep), 1, tokens)
    predict(run.predictor, request)
    if output.endswith(".jsonl"):
        with open(output, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    if output.endswith(".parquet"):
        return pyarrow.parquet.read_table(output).to_pylist()
    with open(output, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_every_format_holds_the_same_rows_in_order(name):
    table("a.csv", 3000)
    run = Run({**TABLE, "test_path": "a.csv"})
    rows = predictions(run, "a.csv", "a.csv", output=name, keep=("city",))
    outputs = run.expected().softmax(1).max(1)
    assert [row["class"] for row in rows] == [["no", "yes"][i] for i in outputs.indices] * 2
    assert [float(row["probability"]) for row in rows] == pytest.approx(outputs.values.tolist() * 2, abs=1e-6)
    with open("a.csv", encoding="utf-8") as file:
        cities = [row["city"] for row in csv.DictReader(file)]
    assert [row["city"] for row in rows] == cities * 2


def test_parquet_and_json_lines_are_read_as_csv_is():
    rows = table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    expected = of_blocks(run, "a.csv")
    values = [{**row, "income": float(row["income"]) if row["income"] else None} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), "a.parquet")
    with open("a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in values)
    assert torch.equal(of_blocks(run, "a.parquet"), expected)
    assert torch.equal(of_blocks(run, "a.jsonl"), expected)


def rows_of(*lines: str) -> None:
    with open("b.csv", "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "b.csv: is empty, expected a CSV file whose first row has the names of the columns"),
        (["age,income,city"], "b.csv: no rows below the names of the columns, expected at least one"),
        (
            ["age,incom,city", "1,2,Ulm"],
            "b.csv: no column 'income', which is an input of the run; did you mean 'incom'?",
        ),
        (
            ["age,income,city", "1,2,Ulm", "", "old,2,Ulm"],
            "b.csv: line 4: column 'age': 'old' is no number, expected a number as in training",
        ),
        (["age,income,city", "1,2,Ulm", "1,2"], "b.csv: line 3 has 2 values, expected 3 as the header: not a table"),
        (
            ["age,income,city", "1,2,Ulm", "1e400,2,Ulm"],
            "b.csv: line 3: column 'age': found inf, expected a finite number",
        ),
        (["age;income;city", "1;2;Ulm"], "b.csv: line 1 has no ',' but 2 ';' between names"),
    ],
)
def test_another_table_is_refused_and_leaves_no_file(lines, message, folder):
    table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    rows_of(*lines)
    with pytest.raises(UserError) as caught:
        predictions(run, "b.csv")
    assert str(caught.value).startswith(message)
    assert sorted(file.name for file in folder.iterdir()) == ["a.csv", "b.csv"]


def test_a_missing_value_is_refused_unless_training_filled_it_in():
    table("a.csv")
    run = Run({**TABLE, "missing": "drop", "test_path": "a.csv"})
    rows_of("age,income,city", "1,2,Ulm", "1,,Ulm")
    with pytest.raises(UserError, match=r"b.csv: line 3: column 'income': no value, expected one.*missing: drop"):
        predictions(run, "b.csv")
    assert run.refusal([{"age": 1, "income": 2, "city": None}]).startswith("record 0 (from 0): column 'city': no value")


def test_an_unknown_category_becomes_zeros_and_a_warning():
    table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    rows_of("age,income,city", "1,2,Ulm", "1,2,Oslo", "1,2,Rom")
    x = of_blocks(run, "b.csv")
    assert x[:, 2:].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert list(run.predictor.input.warnings()) == [
        "b.csv: line 3: column 'city': 'Oslo' is in no training row; 2 rows with such values in column 'city' have a row of "
        "zeros there"
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"age": "1", "income": 2, "city": "Ulm"},
            "column 'age': '1' is no number, expected a finite number as in training",
        ),
        ({"age": 1, "city": "Ulm"}, "no column 'income', which is an input of the run"),
        ({"age": [1], "income": 2, "city": "Ulm"}, "column 'age': [1] is no number"),
        ([1, 2], "found list, expected an object with a value for each column"),
    ],
)
def test_a_wrong_record_is_refused(record, message):
    table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    assert run.refusal([record]).startswith(f"record 0 (from 0): {message}")


def pictures(root, count: int = 6, size: int = 8) -> list[str]:
    made = []
    for i in range(count):
        folder = root / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (size, size + 2, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        made.append(str(folder / f"{i}.jpg"))
    return made


IMAGES = {"name": "images", "path": "train", "test_path": "new", "workers": 0}


def test_pictures_of_folders_files_tables_and_bytes(folder):
    pictures(folder / "train")
    files = sorted(pictures(folder / "new"))
    run = Run({**IMAGES, "size": [6, 6], "normalise": "half", "mode": "grey"}, model={"name": "mlp"})
    rows = predictions(run, str(folder / "new"))
    outputs = run.expected().softmax(1).max(1)
    names = [["cat", "dog"][i] for i in outputs.indices]
    assert [row["file"] for row in rows] == files
    assert [row["class"] for row in rows] == names
    assert [float(row["probability"]) for row in rows] == pytest.approx(outputs.values.tolist(), abs=1e-6)
    (folder / "list.csv").write_text("id,path\n" + "\n".join(f"{i},{f}" for i, f in enumerate(files[2:])))
    rows = predictions(run, "list.csv", output="again.csv", keep=("id",))
    assert [(row["id"], row["class"]) for row in rows] == [(str(i), name) for i, name in enumerate(names[2:])]
    contents = [open(file, "rb").read() for file in files]  # noqa: SIM115
    assert [answer["class"] for answer in run.predictor.predict(contents)] == names


def test_damaged_pictures_and_those_of_another_size_are_refused(folder):
    pictures(folder / "train")
    other = pictures(folder / "new", size=8)
    run = Run(IMAGES)
    whole = open(other[0], "rb").read()  # noqa: SIM115
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (5, 5)).save("small.png")
    (folder / "void.jpg").touch()
    (folder / "none").mkdir()
    for path, message in {
        "cut.jpg": "cut.jpg: not a readable image: ",
        "void.jpg": "void.jpg: not a readable image: cannot identify image file",
        "small.png": "small.png: is float32 [3, 5, 5], expected [3, 8, 10] as in training; a run with data.size resizes",
        "none": "none: no files in this folder, expected .jpg",
        "gone.jpg": "gone.jpg: no such file or folder",
        "list.txt": "list.txt: no such file or folder; did you mean",
    }.items():
        (folder / "lists.txt").touch()
        with pytest.raises(UserError) as caught:
            predictions(run, path)
        assert str(caught.value).startswith(message)
    assert run.refusal([b"no picture"]).startswith("record 0 (from 0): not a readable image")


def sound(path, seconds: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        draw = np.random.default_rng(int(seconds * 100))
        file.writeframes(draw.integers(-9999, 9999, 2 * int(seconds * rate)).astype("<i2").tobytes())


def test_sounds_of_any_length_and_rate(folder):
    for name in ("a", "b"):
        sound(folder / "train" / name / "0.wav", 0.2)
        sound(folder / "new" / name / "0.wav", 0.3 if name == "a" else 0.1, 11025)
    data = {"name": "audio", "path": "train", "test_path": "new", "rate": 8000, "seconds": 0.2, "features": "log_mel"}
    run = Run({**data, "mels": 8, "workers": 0})
    expected = run.built.data.test.batch(torch.arange(2))[0]
    assert torch.equal(of_blocks(run, "new"), expected)
    assert [row["class"] for row in predictions(run, "new")] == [["a", "b"][i] for i in run.expected().argmax(1)]


def test_records_of_named_values_become_the_inputs_of_training():
    lines = [
        {"a": [i, 0.5], "meta": {"b": i}, "t": "yes" if i % 3 else "no", "words": "ab" * (i + 1)} for i in range(12)
    ]
    with open("a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    data = {
        "name": "jsonl", "path": "a.jsonl", "test_path": "a.jsonl", "inputs": {"x": "a", "b": "meta.b", "w": "words"},
        "target": "t", "tokenizer": "bytes", "length": 8, "collate": {"name": "pad", "multiple": 4},
    }  # fmt: skip
    run = Run(data, model={"target": "tests.single.test_predict:Several"})
    whole = run.built.data.test.batch(torch.arange(12))
    made = run.predictor.encode([{key: line[key] for key in ("a", "meta", "words")} for line in lines])
    assert list(made) == ["x", "b", "w"]
    assert all(torch.equal(made[key], whole[key]) for key in made)
    assert [row["class"] for row in predictions(run, "a.jsonl")] == ["no"] * 12
    assert run.refusal([{"a": [1, 2], "meta": {}}]).startswith("record 0 (from 0): 'meta': no key 'b'")


class Several(torch.nn.Module):
    """Takes the inputs by name; the first class is the most probable one."""

    def __init__(self, spec) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x, b, w):
        return self.bias + 0 * (x.sum(1, keepdim=True) + b[:, None] + w.sum(1, keepdim=True))


TEXT = "the quick brown fox jumps over the lazy dog. " * 30


@pytest.mark.parametrize("tokenizer", ["bytes", {"name": "bpe", "vocabulary": 280}])
def test_a_language_model_continues_lines_and_gives_their_loss(tokenizer, folder):
    (folder / "a.txt").write_text(TEXT)
    data = {"name": "text", "paths": ["a.txt"], "length": 12, "tokenizer": tokenizer}
    run = Run(data, top=2, model={"name": "transformer", "layers": 1, "width": 16, "heads": 2})
    texts = ["the quick", "over the lazy dog", "the brown", "x" * 40]
    (folder / "lines.txt").write_text("\n".join(texts))
    rows = predictions(run, "lines.txt", output="out.jsonl")
    encode = run.predictor.input._tokenizer.encode
    for text, row in zip(texts, rows, strict=True):
        tokens = torch.tensor(np.asarray(encode([text])[0], np.int64))
        with torch.no_grad():
            losses = [
                torch.nn.functional.cross_entropy(
                    run.built.model(tokens[None, at : at + 13][:, :-1])[0], tokens[at + 1 : at + 13], reduction="sum"
                )
                for at in range(0, len(tokens) - 1, 12)
            ]
            whole = tokens
            for _ in range(16):
                whole = torch.cat([whole, run.built.model(whole[None, -12:])[0, -1].argmax()[None]])
            chances = run.built.model(tokens[None, -12:])[0, -1].softmax(0).topk(2).values
        assert row["loss"] == pytest.approx(float(sum(losses)) / (len(tokens) - 1), abs=1e-5)
        assert [t["probability"] for t in row["top"]] == pytest.approx(chances.tolist(), abs=1e-6)
        decode = decoder(described(run.document, run.built.data.spec))
        assert row["completion"] == decode(whole[len(tokens) :].tolist())


def test_a_run_of_an_older_version_is_read():
    table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    record = {"age": 40, "income": None, "city": "Ulm"}
    expected = run.predictor.encode([record])
    document = {key: value for key, value in run.document.items() if key != "input"}
    old = Predictor(LoadedModel(run.built.model, run.built.data.spec, run.config, document))
    assert torch.equal(old.encode([record]), expected)
    (Path("data.json")).write_text(json.dumps(document))
    assert preprocessing.difference(Path(), run.built.data) is None


def test_memory_does_not_grow_with_a_table():
    """A block is encoded before the next one is read."""
    table("a.csv")
    run = Run({**TABLE, "test_path": "a.csv"})
    with open("a.csv", encoding="utf-8") as file:
        header, *rows = file.readlines()
    with open("long.csv", "w", encoding="utf-8") as file:
        file.write(header)
        file.writelines(rows * 5000)
    sizes = [len(block.records) for block in run.predictor.input.blocks(["long.csv"])]
    assert sum(sizes) == 200_000
    assert max(sizes) < 80_000


def test_a_mixture_reads_inputs_by_a_fit_that_its_sources_share():
    np.savez("a.npz", x=np.ones((9, 4)), y=np.arange(9) % 3)
    run = Run({"name": "concat", "sources": [{"name": "npz", "path": "a.npz"}, {"name": "npz", "path": "a.npz"}]})
    assert torch.equal(of_blocks(run, "a.npz"), torch.ones(9, 4))
