"""Data with mistakes: one row for each input, with the error, the warning or the values that it gives."""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset
from hvd_train.data.load import load as load_section
from hvd_train.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def load(name: str, **options: Any) -> Dataset:
    return plugins.create("hvd_train.data.sources", name, **options)


def csv(content: str | bytes, **options: Any) -> Dataset:
    with open("t.csv", "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return load("csv", **{"path": "t.csv", "target": "y", "test_fraction": 0, **options})


def parquet(columns: dict[str, Any] | pa.Table, metadata: Any = None, **options: Any) -> Dataset:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({b"pandas": json.dumps(metadata).encode()})
    pyarrow.parquet.write_table(table, "t.parquet")
    return load("parquet", **{"path": "t.parquet", "target": "y", "test_fraction": 0, **options})


def npz(x: Any, y: Any, **options: Any) -> Dataset:
    np.savez("t.npz", x=np.asarray(x), y=np.asarray(y))
    return load("npz", **{"path": "t.npz", "test_fraction": 0, **options})


def npz_test(x: Any, y: Any) -> Dataset:
    np.savez("test.npz", x=np.asarray(x), y=np.asarray(y))
    return npz(np.ones((3, 2)), np.array([0, 1, 1]), test_path="test.npz")


def idx(path: str, array: np.ndarray, code: int) -> str:
    with open(path, "wb") as file:
        file.write(struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape))
        file.write(array.astype(array.dtype.newbyteorder(">")).tobytes())
    return path


def idx_of(images: np.ndarray, code: int, labels: Any = (0, 1), kind: int = 8) -> Dataset:
    return load(
        "idx", images=idx("im", images, code), labels=idx("la", np.asarray(labels, None if kind != 8 else "u1"), kind)
    )


SOURCE = """
import numpy as np, torch
from torch.utils.data import TensorDataset
from hvd_train.data.base import Dataset, tensor_split
from hvd_train.data.spec import DataSpec

def own(x, y, outputs):
    split = tensor_split(torch.tensor([[x]]), torch.tensor([y]))
    return Dataset(split, split, DataSpec((1,), outputs, "classification"))

class Of:
    def __init__(self, samples, **more):
        self.samples = samples
        self.__dict__.update(more)
    def __len__(self): return len(self.samples)
    def __getitem__(self, i): return self.samples[i]

def data():
    return {EXPRESSION}
"""
ONES = "torch.ones(2)"


def target(expression: str, batch: bool = False) -> Dataset:
    import sys

    with open("mine.py", "w") as file:
        file.write(SOURCE.replace("{EXPRESSION}", expression))
    sys.modules.pop("mine", None)
    sys.dont_write_bytecode = True
    data = load_section(read_section(DataSection, Document({"target": "mine:data"}, "test")))
    if batch:
        for split in (data.train, data.test):
            if len(split):
                split.batch(torch.arange(len(split)))
    return data


STANDARD = {"standardise": True}
TEN = "".join(f"{i},{i % 3 / 2},{i % 2}\n" for i in range(10))
Make = Callable[[], Dataset]

REFUSED: dict[str, tuple[Make, str]] = {
    # Tables of text
    "infinite": (lambda: csv("a,y\n1,0\ninf,1\n", **STANDARD), "t.csv: column 'a', line 3: found inf"),
    "infinite plain": (lambda: csv("a,y\n1,0\n-Infinity,1\n"), "t.csv: column 'a', line 3: found -inf"),
    "infinite target": (lambda: csv("a,y\n1,0.5\n2,inf\n"), "t.csv: column 'y', line 3: found inf"),
    "infinite class": (lambda: csv("a,y\n1,0.5\n2,inf\n", task="classification"), "column 'y', line 3: found inf"),
    "infinite held out": (
        lambda: csv("a,y\n1,0\n2,1\n3,0\ninf,1\n", test_fraction=0.5),
        "column 'a', line 5: found inf",
    ),
    "beyond float32": (lambda: csv("a,y\n1,0\n1e300,1\n"), "column 'a', line 3: 1e+300 is beyond float32"),
    "beyond float64": (lambda: csv("a,y\n1,0\n1e999,1\n"), "column 'a', line 3: found inf"),
    "target beyond float32": (lambda: csv("a,y\n1,0.5\n2,1e300\n"), "column 'y', line 3: 1e+300 is beyond float32"),
    "missing": (lambda: csv("a,y\n1,0\n,1\nnan,0\n"), "column 'a', line 3: 2 missing values in column 'a'"),
    "missing target": (
        lambda: csv("a,y\n1,\n2,1\n", missing="mean"),
        "line 2: 1 missing values in column 'y', of which",
    ),
    "all dropped": (lambda: csv("a,y\n1,\n,1\n", missing="drop"), "all 2 rows have missing values"),
    "none trained on": (lambda: csv("a,b,y\n1,,0\n2,,1\n", missing="mean"), "column 'b' holds no values"),
    "text": (
        lambda: csv("a,y\nred,0\nblue,1\n"),
        "column 'a', line 2: 'red' is of type string, expected numbers; data.cat",
    ),
    "one typo": (
        lambda: csv("a,y\n1,0\n2,1\n3O,0\n", categorical="onehot"),
        "column 'a', line 4: '3O' is no number, though 2",
    ),
    "typo in target": (lambda: csv("a,y\n1,1.5\n2,2.5\n3,?\n"), "column 'y', line 4: '?' is no number"),
    "decimal comma": (
        lambda: csv('a,y\n"1,5",0\n"2,5",1\n'),
        "column 'a', line 2: '1,5' is no number, expected one such as 1234.5",
    ),
    "thousands": (lambda: csv('a,y\n12,0\n"1,234,567",1\n'), "column 'a', line 3: '1,234,567' is no number"),
    "decimal comma target": (lambda: csv('a,y\n1,"1,5"\n2,"2,5"\n'), "column 'y', line 2: '1,5' is no number"),
    "date": (lambda: csv("a,y\n2024-01-31,0\n2024-02-01,1\n"), "column 'a', line 2: '2024-01-31' is of type date32"),
    "date target": (
        lambda: csv("a,y\n1,2024-01-31\n2,2024-02-01\n"),
        "column 'y', line 2: '2024-01-31' is of type date32",
    ),
    "line after quoted newline": (
        lambda: csv('a,b,y\n"x\ny",1,0\n\nz,inf,1\n', categorical="code"),
        "column 'b', line 5: found inf",
    ),
    "semicolons": (lambda: csv("a;y\n1,5;0\n"), "line 1 has no ',' but 1 ';' between names; set data.delimiter: ';'"),
    "tabs": (lambda: csv("a\ty\n1\t0\n"), 'set data.delimiter: "\\t"'),
    "ragged": (lambda: csv("a,y\n1,0\n1,2,3\n"), "t.csv: line 3 has 3 values, expected 2"),
    "open quote": (lambda: csv('a,y\n1,0\n"2,1\n3,0\n'), "t.csv: line 3 has 1 values, expected 2"),
    "utf-16": (lambda: csv("a,y\n1,0\n".encode("utf-16")), "t.csv: line 1 is not text in UTF-8"),
    "latin-1": (
        lambda: csv("a,y\n1,Köln\n2,Bonn\n".encode("latin-1")),
        "column 'y', line 2: b'K\\xf6ln' is not text in UTF-8",
    ),
    "empty": (lambda: csv(""), "t.csv: not a table of comma-separated values: Empty CSV file"),
    "header alone": (lambda: csv("a,y\n"), "t.csv: 0 rows, 1 features"),
    "no header": (lambda: csv("1,0\n2,1\n"), "no column 'y' (choices: 0, 1); the first line holds numbers"),
    "header with spaces": (lambda: csv("a, y\n1,0\n"), "no column 'y'; did you mean ' y'?"),
    "one row": (lambda: csv("a,y\n1,0\n", test_fraction=0.6), "leaves none of 1 samples"),
    "same name twice": (lambda: csv("a,a,y\n1,2,0\n"), "expected different names: 'a' comes twice"),
    "feature twice": (lambda: csv("a,y\n1,0\n", features=["a", "a"]), "the feature 'a' is named twice"),
    # Parquet
    "parquet infinite": (
        lambda: parquet({"a": [1.0, math.inf], "y": [0, 1]}),
        "t.parquet: column 'a', row 1 (from 0): found inf",
    ),
    "parquet null": (lambda: parquet({"a": [1, None], "y": [0, 1]}), "column 'a', row 1 (from 0): 1 missing values"),
    "parquet all null": (
        lambda: parquet({"a": pa.nulls(2), "y": [0, 1]}, missing="mean"),
        "column 'a' holds no values",
    ),
    "list": (lambda: parquet({"a": [[1], [2]], "y": [0, 1]}), "column 'a', row 0 (from 0): '[1]' is of type list"),
    "struct": (lambda: parquet({"a": [{"b": 1}] * 2, "y": [0, 1]}), "is of type struct"),
    "timestamp": (lambda: parquet({"a": [datetime(2024, 1, 1)] * 2, "y": [0, 1]}), "is of type timestamp"),
    "binary": (lambda: parquet({"a": [b"\xff", b"\x01"], "y": [0, 1]}), "b'\\xff' is not text in UTF-8"),
    "dictionary": (lambda: parquet({"a": pa.array(["u", "v"]).dictionary_encode(), "y": [0, 1]}), "data.categorical"),
    "dictionary of dates": (
        lambda: parquet({"a": pa.array([date(2024, 1, 1)] * 2).dictionary_encode(), "y": [0, 1]}, categorical="code"),
        "column 'a', row 0 (from 0): '2024-01-01' is of type date32",
    ),
    "dropped rows keep their number": (
        lambda: parquet({"a": [None, 1.0, math.inf], "y": [0, 1, 0]}, missing="drop"),
        "column 'a', row 2 (from 0): found inf",
    ),
    # Arrays
    "nan": (lambda: npz([[1, 2], [3, math.nan]], [0, 1]), "t.npz: array 'x' at [1, 1]: found nan"),
    "nan target": (lambda: npz([1, 2], [0.5, math.nan]), "t.npz: array 'y' at [1]: found nan"),
    "nan in test inputs": (
        lambda: npz_test([[1, 2], [math.nan, 1]], [0, 1]),
        "test.npz: array 'x' at [1, 0]: found nan",
    ),
    "class below 0 in test": (lambda: npz_test([[1, 2]], [-1]), "test.npz: array 'y' at [0]: found the class -1"),
    "other test shape": (lambda: npz_test([[1, 2, 3]], [0]), "test.npz: samples of shape (3,)"),
    "float16 infinite": (lambda: npz(np.array([1, np.inf], np.float16), [0, 1]), "array 'x' at [1]: found inf"),
    "array beyond float32": (lambda: npz([1.0, -1e39], [0, 1]), "array 'x' at [1]: -1e+39 is beyond float32"),
    "longdouble": (lambda: npz(np.array([1, 1e300], np.longdouble), [0, 1]), "is beyond float32"),
    "complex": (lambda: npz([1j, 2], [0, 1]), "array 'x' is complex128 of shape (2,), expected real numbers"),
    "structured": (lambda: npz(np.zeros(2, [("a", "f4")]), [0, 1]), "expected numbers: store each field as an array"),
    "dates": (lambda: npz(np.array(["2024-01-01"], "M8[D]"), [0]), "expected numbers: store times as seconds"),
    "text classes": (
        lambda: npz([1, 2], ["cat", "dog"]),
        "array 'y' is <U3 of shape (2,), expected numbers: numpy.unique",
    ),
    "objects": (lambda: npz(np.array([{}, {}]), [0, 1]), "t.npz: array 'x' cannot be read: Object arrays"),
    "object targets": (lambda: npz([1, 2], np.array([None, 1])), "t.npz: array 'y' cannot be read: Object arrays"),
    "lengths": (lambda: npz([1, 2, 3], [0, 1]), "array 'x', t.npz: array 'y': 3 inputs but 2 targets"),
    "identifiers as classes": (
        lambda: npz([1, 2], [0, 10**9]),
        "array 'y' at [1]: found the class 1000000000 among 2 samples",
    ),
    "uint64 classes": (lambda: npz([1, 2], np.array([0, 2**63], np.uint64)), "found the class 9223372036854775808"),
    "idx nan": (lambda: idx_of(np.array([[1], [np.nan]], "f4"), 0x0D), "im at [1, 0]: found nan"),
    "idx target": (
        lambda: idx_of(np.ones((2, 1), "f4"), 0x0D, np.array([1, np.inf], "f8"), 0x0E),
        "la at [1]: found inf",
    ),
    "idx negative": (
        lambda: idx_of(np.ones((2, 1), "u1"), 8, np.array([0, -1], "i1"), 9),
        "la at [1]: found the class -1",
    ),
    "synthetic": (lambda: load("synthetic", noise=1e39, classes=0), "synthetic: targets at [0, 0]: found"),
    # A target
    "nan sample": (
        lambda: target(f"Of([({ONES}, 0.5), ({ONES} * float('nan'), 0.5)])", True),
        "training[1]: found nan in the inputs",
    ),
    "nan sample in test": (
        lambda: target(f"Of([({ONES}, 0.5)]), Of([({ONES}, 0.5), ({ONES}, float('inf'))])", True),
        "target 'mine:data', test[1]: found inf in the targets",
    ),
    "nan tensor": (
        lambda: target("TensorDataset(torch.tensor([[1.], [float('nan')]]), torch.arange(2))"),
        "training inputs at [1, 0]",
    ),
    "nan own": (
        lambda: target("own(float('inf'), 0, 1)"),
        "target 'mine:data', training inputs at [0, 0]: found inf",
    ),
    "own classes": (
        lambda: target("own(1.0, 3, 2)"),
        "found the class 3, but the DataSpec says 2 outputs",
    ),
    "half a class": (
        lambda: target(f"Of([({ONES}, 0), ({ONES}, 1.5)])"),
        "training[1]: found the target 1.5, expected a class",
    ),
    "text class": (lambda: target(f"Of([({ONES}, 0), ({ONES}, 'cat')])"), "training[1]: found the target cat"),
    "other shape": (
        lambda: target(f"Of([({ONES}, 0), (torch.ones(3), 1)])", True),
        "training[1] is (float32 [3], int), expected (float32 [2], int) as",
    ),
    "other shape in test": (
        lambda: target(f"Of([({ONES}, 0)]), Of([(torch.ones(3), 0)])"),
        "a test sample is torch.float32 (3,)",
    ),
    "other target in test": (
        lambda: target(f"Of([({ONES}, 0)]), Of([({ONES}, 0.5)])"),
        "with the target torch.float64 ()",
    ),
    "targets of another length": (
        lambda: target(f"Of([({ONES}, 0)] * 3, targets=[0, 1])"),
        "expected one for each of 3 samples",
    ),
    "targets that lie": (
        lambda: target(f"Of([({ONES}, 0), ({ONES}, 7)], targets=[0, 1])", True),
        "training[1]: found 7 as the target",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_the_place_and_the_value(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def pandas_index(*names: Any) -> dict[str, Any]:
    return {"index_columns": list(names), "columns": [], "pandas_version": "2.2.0"}


TWO = {"y": [0, 1]}
WARNED: dict[str, tuple[Make, str, list[list[float]]]] = {
    "pandas index": (
        lambda: parquet({"a": [5.0, 6.0], "__index_level_0__": [3, 9], **TWO}, pandas_index("__index_level_0__")),
        "column '__index_level_0__' is the index of a pandas table, so it is no input",
        [[5], [6]],
    ),
    "named pandas index": (
        lambda: parquet({"a": [5.0, 6.0], "when": ["x", "y"], **TWO}, pandas_index("when")),
        "column 'when' is the index of a pandas table",
        [[5], [6]],
    ),
    "index without metadata": (
        lambda: parquet({"a": [5.0, 6.0], "__index_level_0__": [0, 1], **TWO}),
        "'__index_level_0__' has no name",
        [[5], [6]],
    ),
    "csv index": (
        lambda: csv(",a,y\n0,5,0\n1,6,1\n"),
        "column '' has no name of its own, so it is no input",
        [[5], [6]],
    ),
    "csv index again": (lambda: csv("Unnamed: 0,a,y\n0,5,0\n1,6,1\n"), "column 'Unnamed: 0' has no name", [[5], [6]]),
    "comma at the end": (lambda: csv("a,y,\n5,0,\n6,1,\n"), "column '' has no name", [[5], [6]]),
    "row numbers": (
        lambda: csv("id,a,y\n" + TEN),
        "column 'id' counts the rows from 0 to 9, so it is no input",
        sorted([i % 3 / 2] for i in range(10)),
    ),
    "constant target": (lambda: csv("a,y\n5,0.5\n6,0.5\n"), "column 'y': all 2 training targets are 0.5", [[5], [6]]),
    "one class": (lambda: csv("a,y\n5,cat\n6,cat\n"), "column 'y': all 2 training targets are cat", [[5], [6]]),
    "constant array": (
        lambda: npz([5.0, 6.0], [1.5, 1.5]),
        "t.npz: array 'y': all 2 training targets are 1.5",
        [[5], [6]],
    ),
    "constant of a target": (
        lambda: target("TensorDataset(torch.tensor([[5.], [6.]]), torch.ones(2))"),
        "all 2 training targets are 1",
        [[5], [6]],
    ),
    "constant input": (
        lambda: csv("a,b,y\n.1,5,0\n.1,6,1\n.1,7,0\n", **STANDARD),
        "column 'a': the same value in all 3 training rows",
        [],
    ),
    "classes from 1": (lambda: npz([5.0, 6.0], [1, 2]), "array 'y': no training sample of class 0", [[5], [6]]),
    "classes with gaps": (lambda: npz([5.0, 6.0], [0, 3]), "no training sample of classes 1, 2", [[5], [6]]),
    "class in test alone": (
        lambda: npz_test([[1, 2]], [2]),
        "no training sample of class 2, though 1 held-out samples are of them",
        [[1, 1]] * 3,
    ),
    "whole floats": (
        lambda: npz([5.0, 6.0] * 2, [1.0, 2.0] * 2),
        "floats make a regression, though all of them are whole numbers (1, 2)",
        [],
    ),
    "one-hot": (lambda: npz([5.0, 6.0], [[1, 0], [0, 1]]), "one-hot rows make a regression", [[5], [6]]),
    "quantity as classes": (
        lambda: parquet({"a": [1.5] * 24 + [2.5], "y": list(range(100, 125))}),
        "25 classes among 25 rows; data.task",
        [],
    ),
    "identifier": (
        lambda: csv("a,y\n5,0\n16777217,1\n"),
        "column 'a', line 3: 16777217 becomes 16777216 in float32",
        [[5], [16777216]],
    ),
    "large identifier": (
        lambda: csv(f"a,y\n5,0\n{2**53 + 1},1\n", **STANDARD),
        f"line 3: {2**53 + 1} becomes {2**53} in float64",
        [],
    ),
    "array of identifiers": (
        lambda: npz(np.array([5, 2**32 + 1], np.uint64), [0, 1]),
        "array 'x' at [1]: 4294967297 becomes 4294967296",
        [],
    ),
    "times": (
        lambda: csv("a,y\n1700000000.5,0\n1700000001.5,1\n"),
        "float32 rounds 1700000000.5 to a multiple of 128",
        [],
    ),
    "too small": (lambda: csv("a,y\n1e-60,0\n2.5,1\n"), "column 'a', line 2: 1e-60 becomes 0 in float32", []),
    "dropped": (
        lambda: csv("a,y\n5,0\n,1\n6,1\n", missing="drop"),
        "dropped 1 of 3 rows with missing values, the first in line 3",
        [[5], [6]],
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_is_warned_of(name: str) -> None:
    make, words, values = WARNED[name]
    data = make()
    assert [text for text in data.warnings if words in text]
    if values:
        assert inputs(data) == values


def inputs(data: Dataset) -> list[list[float]]:
    """Training inputs, in sorted order."""
    return sorted(data.train.batch(torch.arange(len(data.train)))[0].flatten(1).tolist())


READ: dict[str, tuple[Make, list[list[float]]]] = {
    "bom": (lambda: csv("\ufeffa,y\n5,0\n6,1\n"), [[5], [6]]),
    "spaces": (lambda: csv("a,y\n 5,0\n6 , 1\n"), [[5], [6]]),
    "empty lines": (lambda: csv("a,y\n\n5,0\n\n6,1\n"), [[5], [6]]),
    "carriage returns": (lambda: csv("a,y\r\n5,0\r\n6,1\r\n"), [[5], [6]]),
    "semicolons and commas": (lambda: csv("a;y\n5,5;0\n6,5;1\n", delimiter=";", decimal=","), [[5.5], [6.5]]),
    "tabs": (lambda: csv("a\ty\n5\t0\n6\t1\n", delimiter="\t"), [[5], [6]]),
    "booleans": (lambda: csv("a,y\nfalse,0\nTrue,1\n"), [[0], [1]]),
    "named row numbers": (lambda: csv("id,a,y\n" + TEN, features=["id"]), [[i] for i in range(10)]),
    "onehot": (lambda: csv("a,y\nred,0\nblue,1\n", categorical="onehot"), [[0, 1], [1, 0]]),
    "code": (lambda: csv("a,y\nred,0\nblue,1\n", categorical="code"), [[1], [2]]),
    "code is not scaled": (lambda: csv("a,y\nred,0\nblue,1\n", categorical="code", **STANDARD), [[1], [2]]),
    "mean": (lambda: csv("a,y\n5,0\n,1\n7,1\n", missing="mean"), [[5], [6], [7]]),
    "mean of text": (lambda: csv("a,y\nred,0\n,1\n", missing="mean", categorical="onehot"), [[0], [1]]),
    "tiny and huge are scaled": (lambda: csv("a,y\n1e-200,0\n3e-200,1\n", **STANDARD), [[-1], [1]]),
    "huge": (lambda: csv("a,y\n1e200,0\n3e200,1\n", **STANDARD), [[-1], [1]]),
    "constant": (lambda: csv("a,y\n.1,0\n.1,1\n.1,1\n", **STANDARD), [[0], [0], [0]]),
    "decimals": (lambda: parquet({"a": [Decimal("1.5"), Decimal("2.5")], **TWO}), [[1.5], [2.5]]),
    "float16": (lambda: parquet({"a": pa.array(np.array([1.5, 2.5], np.float16)), **TWO}), [[1.5], [2.5]]),
    "nullable integers": (lambda: parquet({"a": [5, None, 7], "y": [0, 1, 1]}, missing="mean"), [[5], [6], [7]]),
    "nullable booleans": (lambda: parquet({"a": [True, None, False], "y": [0, 1, 1]}, missing="drop"), [[0], [1]]),
    "categories of pandas": (
        lambda: parquet({"a": pa.array(["v", "u"]).dictionary_encode(), **TWO}, categorical="code"),
        [[1], [2]],
    ),
    "range index": (lambda: parquet({"a": [5.0, 6.0], **TWO}, pandas_index({"kind": "range", "stop": 2})), [[5], [6]]),
    "index asked for": (
        lambda: parquet({"a": [5.0, 6.0], "when": [1.0, 2.0], **TWO}, pandas_index("when"), features=["when"]),
        [[1], [2]],
    ),
    "big-endian": (lambda: npz(np.array([5, 6], ">f4"), np.array([0, 1], ">i8")), [[5], [6]]),
    "uint16": (lambda: npz(np.array([5, 65535], np.uint16), np.array([0, 1], np.uint32)), [[5], [65535]]),
    "half": (lambda: npz(np.array([5, 6], np.float16), [0, 1]), [[5], [6]]),
    "Fortran order": (lambda: npz(np.asfortranarray([[1, 2, 3], [4, 5, 6]]), [0, 1]), [[1, 2, 3], [4, 5, 6]]),
    "not contiguous": (lambda: npz(np.arange(12.0).reshape(2, 6)[:, ::-2], [0, 1]), [[5, 3, 1], [11, 9, 7]]),
    "numpy scalars": (
        lambda: target("Of([(np.float64([5]), np.int64(0)), (np.float64([6]), np.int64(1))])", True),
        [[5], [6]],
    ),
    "lists and ints": (
        lambda: target("Of([(torch.tensor([5.]), True), (torch.tensor([6.]), False)])", True),
        [[5], [6]],
    ),
    "unsigned tensors": (
        lambda: target("TensorDataset(torch.tensor([[5], [6]], dtype=torch.uint16), torch.arange(2))", True),
        [[5], [6]],
    ),
    "unsigned samples": (
        lambda: target("Of([(np.array([5], np.uint32), 0), (np.array([6], np.uint32), 1)])", True),
        [[5], [6]],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_is_read(name: str) -> None:
    make, values = READ[name]
    data = make()
    assert inputs(data) == values


def test_what_is_fitted_sees_training_rows_alone_and_can_be_done_again(folder) -> None:
    """The file is enough to make every input again; held-out rows have categories that no training row has."""
    rows = [(f"{i * 1.7}" if i % 4 else "", f"k{i}" if i % 2 else "same", f"c{i % 3}") for i in range(40)]
    text = "number,kind,y\n" + "".join(",".join(row) + "\n" for row in rows)
    options = {"standardise": True, "missing": "mean", "categorical": "onehot", "test_fraction": 0.5}
    data = csv(text, **options)
    assert any("held-out rows with such values have a row of zeros" in w for w in data.warnings)
    preprocessing.save(folder, data)
    saved = json.loads((folder / "data.json").read_text())
    number, kind = saved["columns"]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    train = [rows[i] for i in order[:20]]
    known = [float(row[0]) for row in train if row[0]]
    assert number["missing"] == pytest.approx(np.mean(known))
    filled = [float(row[0]) if row[0] else number["missing"] for row in train]
    assert (number["mean"], number["deviation"]) == pytest.approx((np.mean(filled), np.std(filled)))
    assert kind["categories"] == sorted({row[1] for row in train})
    assert saved["target"] == {"name": "y", "classes": ["c0", "c1", "c2"]}
    for split, positions in ((data.train, order[:20]), (data.test, order[20:])):
        x, y = split.batch(torch.arange(20))
        for got, label, row in zip(x, y, (rows[i] for i in positions), strict=True):
            value = float(row[0]) if row[0] else number["missing"]
            one = [float(c == row[1]) for c in kind["categories"]]
            expected = [(value - number["mean"]) / number["deviation"], *one]
            torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))
            assert saved["target"]["classes"][label] == row[2]
    code = csv(text, **{**options, "categorical": "code"})
    unknown = code.test.batch(torch.arange(20))[0][:, 1] == 0
    assert unknown.tolist() == [rows[i][1] not in kind["categories"] for i in order[20:]]


def test_a_run_goes_on_with_the_same_preprocessing_alone(folder) -> None:
    text = "a,kind,y\n5,u,0\n6,v,1\n7,u,1\n"
    options: dict[str, Any] = {"standardise": True, "categorical": "onehot"}
    preprocessing.save(folder, csv(text, **options))
    assert preprocessing.difference(folder, csv(text, **options)) is None
    assert preprocessing.difference(folder / "none", csv(text, **options)) is None
    for other, more, words in (
        (text.replace("7,u", "8,u"), {}, "columns[a].mean is 6.0 in the run and 6.33"),
        (text.replace("6,v", "6,w"), {}, 'columns[kind].categories[1] is "v" in the run and "w" now'),
        (text, {"categorical": "code"}, 'columns[kind].kind is "onehot" in the run and "code" now'),
        (text, {"standardise": False}, "columns[a].mean is 6.0 in the run and 0.0 now"),
        (text.replace("u,0", "u,2"), {}, "target.classes[0]"),
    ):
        assert words in str(preprocessing.difference(folder, csv(other, **{**options, **more})))
    preprocessing.save(folder, csv(text.replace("7", "8"), **options))
    assert json.loads((folder / "data.json").read_text())["columns"][0]["mean"] == 6
    (folder / "data.json").write_text("{")
    assert "data.json is damaged" in str(preprocessing.difference(folder, csv(text, **options)))


def test_a_truncated_idx_file_says_how_long_it_is(folder) -> None:
    content = struct.pack(">BBBBII", 0, 0, 8, 2, 5, 3) + bytes(14)
    for name, whole in (("im", content), ("im.gz", gzip.compress(content))):
        (folder / name).write_bytes(whole)
        with pytest.raises(UserError, match=rf"{name}: 26 bytes, expected 27 for uint8 of shape \(5, 3\)"):
            load("idx", images=name, labels=idx("la", np.zeros(5, "u1"), 8))
