"""Other files, encoded by what was fitted on the training files of a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data import preprocessing
from hvd_train.data.load import load
from hvd_train.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def section(**options) -> DataSection:
    return read_section(DataSection, Document(options, "test"))


def fitted(**options) -> dict:
    """data.json of a run with these data."""
    return json.loads(json.dumps(preprocessing.document(load(section(**options)))))


def samples(data) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data.train.batch(torch.arange(len(data.train)))
    order = torch.arange(len(y)) if y.is_floating_point() else y.argsort(stable=True)
    return x[order], y[order]


def refusal(document: dict, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(section(**options), fitted=document)
    return str(caught.value)


def write(path: str, *lines: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


TABLE = {
    "name": "csv",
    "target": "y",
    "standardise": True,
    "categorical": "code",
    "missing": "mean",
    "test_fraction": 0,
}


def test_a_table_has_the_columns_the_scale_and_the_classes_of_training():
    write("a.csv", "n,c,y", "1,u,no", "3,w,yes", "5,u,maybe")
    write("b.csv", "y,extra,c,n", "no,9,w,7", "yes,9,007,1")
    document = fitted(**TABLE, path="a.csv")
    x, y = samples(load(section(**TABLE, path="b.csv"), fitted=document))
    deviation = (8 / 3) ** 0.5
    assert torch.allclose(x, torch.tensor([[4 / deviation, 2.0], [-2 / deviation, 0.0]]))
    assert y.tolist() == [1, 2]
    data = load(section(**TABLE, path="b.csv"), fitted=document)
    assert (data.spec.outputs, preprocessing.document(data)) == (3, document)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("n,y", "1,no"), "b.csv: no column 'c'; did you mean"),
        (
            ("n,c,y", "1,u,no", "1,u,nope"),
            "b.csv: column 'y', line 3: 'nope' is no class of the run; did you mean 'no'?",
        ),
        (("n,c,y", "x,u,no"), "b.csv: column 'n', line 2: 'x' is of type string, expected numbers as in training"),
        (("n,c", "1,u"), "b.csv: no column 'y'"),
    ],
)
def test_another_table_is_refused(lines, message):
    write("a.csv", "n,c,y", "1,u,no", "3,w,yes", "5,u,maybe")
    write("b.csv", *lines)
    assert refusal(fitted(**TABLE, path="a.csv"), **TABLE, path="b.csv").startswith(message.partition(";")[0])


def test_a_regression_keeps_numbers():
    write("a.csv", "n,y", "1,2.5", "3,4.5")
    options = {"name": "csv", "target": "y", "task": "regression", "test_fraction": 0}
    write("b.csv", "n,y", "8,1")
    x, y = samples(load(section(**options, path="b.csv"), fitted=fitted(**options, path="a.csv")))
    assert (x.tolist(), y.tolist()) == ([[8.0]], [[1.0]])


def test_arrays_keep_the_number_of_classes():
    np.savez("a.npz", x=np.ones((6, 2)), y=np.arange(6) % 3)
    np.savez("b.npz", x=np.ones((6, 2)), y=np.zeros(6, int))
    np.savez("c.npz", x=np.ones((6, 2)), y=np.arange(6))
    np.savez("d.npz", x=np.ones((6, 3)), y=np.zeros(6, int))
    document = fitted(name="npz", path="a.npz")
    assert load(section(name="npz", path="b.npz"), fitted=document).spec.outputs == 3
    assert refusal(document, name="npz", path="c.npz") == "data: 6 classes in npz, expected 3 as in the run"
    assert "samples of shape (3,)" in refusal(document, name="npz", path="d.npz")


def pictures(root: str, *classes: str) -> None:
    import os

    for number, name in enumerate(classes):
        os.makedirs(f"{root}/{name}")
        Image.new("RGB", (4, 4), (number, 0, 0)).save(f"{root}/{name}/0.png")


def test_folders_are_the_classes_of_training():
    pictures("a", "ant", "bee", "cow")
    pictures("b", "cow")
    pictures("c", "cow", "cot")
    options = {"name": "images", "workers": 0, "test_fraction": 0}
    document = fitted(**options, path="a")
    data = load(section(**options, path="b"), fitted=document)
    assert (data.train.labels.tolist(), data.spec.outputs) == ([2], 3)
    assert refusal(document, **options, path="c").startswith(
        "c: no training sample is of class 'cot'; did you mean 'cow'?"
    )


def test_lines_keep_classes_and_a_learned_tokenizer():
    options = {
        "name": "jsonl", "inputs": "t", "target": "y", "test_fraction": 0, "collate": "pad",
        "tokenizer": {"name": "bpe", "vocabulary": 270},
    }  # fmt: skip
    write("a.jsonl", '{"t": "low lower lowest", "y": "b"}', '{"t": "new newer newest", "y": "a"}')
    write("b.jsonl", '{"t": "lowest", "y": "b"}')
    write("c.jsonl", '{"t": "lowest", "y": "c"}')
    document = fitted(**options, path="a.jsonl")
    trained = load(section(**options, path="a.jsonl"))
    data = load(section(**options, path="b.jsonl"), fitted=document)
    x, y = data.train.batch(torch.arange(1))
    assert y.tolist() == [1]
    assert x[0].tolist() == trained.train.items.form.encode("lowest").tolist()
    assert len(x[0]) < len("lowest")
    assert "found 'c', expected a class of the training data" in refusal(document, **options, path="c.jsonl")


def test_text_keeps_a_learned_tokenizer():
    write("a.txt", *["low lower lowest new newer newest"] * 20)
    write("b.txt", *["newest lowest"] * 20)
    options = {"name": "text", "length": 4, "tokenizer": {"name": "bpe", "vocabulary": 270}, "test_fraction": 0}
    document = fitted(**options, paths=["a.txt"])
    data = load(section(**options, paths=["b.txt"]), fitted=document)
    assert preprocessing.document(data) == document
    assert preprocessing.document(load(section(**options, paths=["b.txt"]))) != document


def test_a_mixture_encodes_each_source_by_its_own_fit():
    write("a.csv", "n,y", "1,no", "3,yes")
    write("b.csv", "n,y", "10,no", "30,yes")
    options = {key: TABLE[key] for key in ("name", "target", "standardise", "test_fraction")}

    def mixture(*paths: str) -> dict:
        return {"name": "concat", "sources": [{**options, "path": path} for path in paths]}

    document = fitted(**mixture("a.csv", "b.csv"))
    x, _ = samples(load(section(**mixture("b.csv", "a.csv")), fitted=document))
    assert sorted(x.flatten().tolist()) == pytest.approx([-1.9, -1.7, 8.0, 28.0])
    assert refusal(document, **mixture("a.csv")) == "data.sources: 1 sources, expected 2 as in the run"
