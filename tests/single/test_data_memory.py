"""Data that stays in files or is made once per host: equal to a copy in every rank, and no copy."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset, Split
from hvd_train.data.hold_out import held_out_rows
from hvd_train.data.load import load as load_section
from hvd_train.data.memory import once as once_module
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.value_checks import at, changed_integer, check_values
from hvd_train.errors import UserError
from hvd_train.rank import node as node_module
from hvd_train.rank.node import on_node
from tests.bodies import node_memory as bodies
from tests.engines import threads


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str, node: Node = ALONE, **options: Any) -> Dataset:
    data = plugins.create("hvd_train.data.sources", name, node, **options)
    assert isinstance(data, Dataset)
    return data


def npy(x: Any, y: Any, prefix: str = "") -> dict[str, Any]:
    np.save(f"{prefix}x.npy", x)
    np.save(f"{prefix}y.npy", y)
    return {"name": "npy", "x": f"{prefix}x.npy", "y": f"{prefix}y.npy"}


def npz(x: Any, y: Any, save: Callable[..., Any] = np.savez) -> dict[str, Any]:
    save("t.npz", x=x, y=y)
    return {"name": "npz", "path": "t.npz"}


def compressed(x: Any, y: Any) -> dict[str, Any]:
    return npz(x, y, np.savez_compressed)


def safetensors(x: Any, y: Any) -> dict[str, Any]:
    arrays = {"x": x, "y": y}
    save_file({k: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))) for k, a in arrays.items()}, "t.st")
    return {"name": "safetensors", "path": "t.st"}


WRITERS = [npy, npz, compressed, safetensors]


def whole(split: Split) -> tuple[Tensor, Tensor]:
    batch: tuple[Tensor, Tensor] = split.batch(torch.arange(len(split)))
    return batch


X = np.random.default_rng(0).normal(size=(12, 3, 2)) * 50
Y = np.arange(12) % 5


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", ["f4", ">f4", "f8", "f2", "i8", ">i2", "u1", "?", "fortran"])
def test_samples_are_those_of_a_copy(write: Callable[..., dict[str, Any]], kind: str) -> None:
    x = np.asfortranarray(X) if kind == "fortran" else X.astype(kind)
    data = load(**write(x, Y), test_fraction=0.25, seed=3)
    copy = torch.from_numpy(x.astype(np.float32))
    for split, rows in zip((data.train, data.test), held_out_rows(12, 0.25, 3), strict=True):
        got, labels = whole(split)
        assert got.dtype == torch.float32
        assert torch.equal(got, copy[rows])
        assert torch.equal(labels, torch.from_numpy(Y)[rows])
        assert torch.equal(split.labels, labels)
        again = torch.tensor([2, 0, 2])
        assert torch.equal(split.batch(again)[0], copy[rows[again]])


@pytest.mark.parametrize("write", WRITERS)
def test_numbers_as_targets_are_those_of_a_copy(write: Callable[..., dict[str, Any]]) -> None:
    y = X.astype(np.float64)[:, :, :1]
    data = load(**write(X, y), test_fraction=0.25)
    rows, _ = held_out_rows(12, 0.25, 0)
    assert torch.equal(whole(data.train)[1], torch.from_numpy(y.astype(np.float32).reshape(12, 3))[rows])
    assert (data.spec.task, data.spec.outputs, set(data.train.labels.tolist())) == ("regression", 3, {-1})


def test_bfloat16_is_widened() -> None:
    from safetensors.torch import save_file as save

    x = torch.tensor([[1.5, -2.0], [3e38, 0.25]]).bfloat16()
    save({"x": x, "y": torch.tensor([0.5, 1.5]).bfloat16()}, "t.st")
    data = load("safetensors", path="t.st", test_fraction=0)
    assert sorted(whole(data.train)[0].tolist()) == sorted(x.float().tolist())
    assert data.spec.task == "regression"
    save({"x": torch.tensor([1.0, float("nan")]).bfloat16(), "y": torch.tensor([0, 1])}, "t.st")
    with pytest.raises(UserError, match=r"t.st: tensor 'x' at \[1\]: found nan"):
        load("safetensors", path="t.st")


@pytest.mark.parametrize("write", WRITERS)
def test_a_split_is_pickled_as_places_in_files(write: Callable[..., dict[str, Any]]) -> None:
    """So that a worker process maps the same memory."""
    x, y = np.arange(40_000.0).reshape(-1, 4), np.arange(10_000) % 7
    split = load(**write(x, y)).train
    content = pickle.dumps(split)
    assert len(content) < 2000
    indices = torch.tensor([0, 5, 7999])
    assert all(map(torch.equal, pickle.loads(content).batch(indices), split.batch(indices)))


@pytest.mark.parametrize("write", [npy, npz])
def test_no_sample_is_copied(write: Callable[..., dict[str, Any]]) -> None:
    """All of an array of 48 MiB is checked and read, and 16 MiB of memory that is no file are used at most."""

    def private() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

    load(**write(X, Y))
    options = write(np.ones((48, 2**18), np.float32), np.arange(48) % 2)
    before = private()
    data = load(**options)
    tracemalloc.start()
    for split in (data.train, data.test):
        for i in range(len(split)):
            assert split.batch(torch.tensor([i]))[0].sum() == 2**18
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert private() - before < 16 * 2**20


def test_several_evaluation_splits_have_names() -> None:
    parts = {name: npy(X[:n], Y[:n], name) for name, n in (("train", 12), ("easy", 4), ("hard", 6))}
    tests = {f"test_{k}": {name: parts[name][k] for name in ("hard", "easy")} for k in "xy"}
    data = load(**{**parts["train"], **tests})
    assert (len(data.train), len(data.test), {k: len(v) for k, v in data.others.items()}) == (12, 6, {"easy": 4})
    assert torch.equal(whole(data.others["easy"])[0], torch.from_numpy(X[:4].astype(np.float32)))
    assert data.others["easy"].labels.tolist() == Y[:4].tolist()
    tests["test_y"].pop("easy")
    with pytest.raises(UserError, match="expected both or neither, with the same names"):
        load(**{**parts["train"], **tests})


def test_the_yaml_file_names_evaluation_splits() -> None:
    np.savez("b.npz", x=X[:5], y=Y[:5])
    section = {**npz(X, Y), "test_path": {"one": "t.npz", "other": "b.npz"}}
    data = load_section(read_section(DataSection, Document(section, "test")))
    assert (len(data.test), len(data.others["other"])) == (12, 5)


DAMAGED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "truncated npy": (lambda: cut(npy(X, Y), "x.npy", 100), "x.npy: 604 bytes, expected 704 for float64 of shape"),
    "text as npy": (lambda: written(npy(X, Y), "x.npy", b"a,b\n1,2\n"), "x.npy: not a .npy file"),
    "empty npy": (lambda: written(npy(X, Y), "x.npy", b""), "x.npy: not a .npy file"),
    "objects in npy": (lambda: npy(X, np.array([{}] * 12)), "y.npy: cannot be read: Object arrays"),
    "texts in npy": (lambda: npy(X, np.array(["a"] * 12)), "y.npy is <U1 of shape (12,), expected numbers"),
    "truncated npz": (lambda: cut(npz(X, Y), "t.npz", 30), "t.npz: not an .npz file"),
    "nan in npy": (lambda: npy(np.array([1, np.nan]), [0, 1]), "x.npy at [1]: found nan, expected"),
    "test of another shape": (
        lambda: {**npy(X, Y), **{f"test_{k}": v for k, v in npy(X[:, 0], Y, "o").items() if k != "name"}},
        "ox.npy: samples of shape (2,) with classes, expected (3, 2)",
    ),
    "truncated safetensors": (lambda: cut(safetensors(X, Y), "t.st", 8), "t.st: 792 bytes, expected 800 for float64"),
    "no safetensors": (lambda: written(safetensors(X, Y), "t.st", b"PK"), "t.st: 2 bytes, expected a safetensors"),
    "header of safetensors": (
        lambda: written(safetensors(X, Y), "t.st", struct.pack("<Q", 4) + b"nope"),
        "its header is no JSON",
    ),
    "list as header": (lambda: written(safetensors(X, Y), "t.st", header([])), "its header is no JSON object"),
    "offsets of safetensors": (
        lambda: written(safetensors(X, Y), "t.st", header({"x": described("F32", [2], [0, 4])})),
        "tensor 'x': 4 bytes, expected 8 for F32 of shape [2]",
    ),
    "fields of safetensors": (
        lambda: written(safetensors(X, Y), "t.st", header({"x": {"dtype": "F32"}})),
        "t.st: tensor 'x': not a safetensors file: the header describes it as {'dtype': 'F32'}",
    ),
    "type of safetensors": (
        lambda: written(safetensors(X, Y), "t.st", header({"x": described("F8_E4M3", [2], [0, 2])})),
        "t.st: tensor 'x' is of type F8_E4M3, expected one of F64, F32",
    ),
    "name in safetensors": (lambda: {**safetensors(X, Y), "x": "z"}, "t.st: no tensor 'z' (choices: x, y)"),
}


def written(options: dict[str, Any], file: str, content: bytes) -> dict[str, Any]:
    Path(file).write_bytes(content)
    return options


def cut(options: dict[str, Any], file: str, nbytes: int) -> dict[str, Any]:
    return written(options, file, Path(file).read_bytes()[:-nbytes])


def header(content: Any) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def described(kind: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_one_sentence(name: str) -> None:
    write, words = DAMAGED[name]
    with pytest.raises(UserError) as caught:
        load(**write())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_is_refused_by_a_worker() -> None:
    content = pickle.dumps(load(**npy(X, Y)).train)
    cut({}, "x.npy", 100)
    with pytest.raises(UserError, match=r"x\.npy: 604 bytes, expected 704"):
        pickle.loads(content)


@pytest.mark.parametrize("body", bodies.BODIES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("size", [1, 3])
def test_ranks_of_a_host(size: int, body: Callable[[Communicator], None]) -> None:
    threads.run(size, body)


def test_hosts_may_do_unequally_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that have ended take part until all have."""
    monkeypatch.setattr(node_module, "_host", threading.get_ident)

    def body(comm: Communicator) -> list[list[int]]:
        return on_node(comm, lambda node: [node.gather(number) for number in range(comm.rank)])

    assert threads.run(3, body) == [[], [[0]], [[0], [1]]]


def test_ranks_of_a_host_that_do_unequally_much_are_told() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(UserError, match="a file changed while the ranks of this host opened it"):
            on_node(comm, lambda node: [node.gather(0) for _ in range(comm.rank)])

    threads.run(2, body)


def test_a_rank_that_may_not_open_the_memory_makes_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "_inode", lambda file: [os.fstat(file.fileno()).st_ino, threading.get_ident()])

    def body(comm: Communicator) -> list[int]:
        arrays, _ = on_node(comm, lambda node: once(node, lambda: ({"a": np.array([comm.rank])}, None)))
        values: list[int] = arrays["a"].values.tolist()
        return values

    assert threads.run(3, body) == [[0], [1], [2]]


@pytest.mark.parametrize("write", [compressed, npz])
def test_ranks_load_what_one_process_loads(write: Callable[..., dict[str, Any]]) -> None:
    options = write(X, Y)
    one = load(**options)
    for data in threads.run(3, lambda comm: on_node(comm, lambda node: load(node=node, **options))):
        assert all(map(torch.equal, whole(data.train), whole(one.train)))
        assert all(map(torch.equal, whole(data.test), whole(one.test)))


def idx(name: str, array: Any, compress: Callable[[bytes], bytes] = bytes) -> str:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    Path(name).write_bytes(compress(head + array.astype("u1").tobytes()))
    return name


def test_idx_names_evaluation_splits() -> None:
    images, labels = np.arange(60).reshape(5, 3, 4), np.arange(5) % 2
    paths = {n: (idx(f"im{n}", images[:n]), idx(f"la{n}", labels[:n])) for n in (5, 2, 3)}
    tests = [{f"split {n}": paths[n][i] for n in (2, 3)} for i in range(2)]
    data = load("idx", images="im5", labels="la5", test_images=tests[0], test_labels=tests[1])
    assert (len(data.train), len(data.test), list(data.others)) == (5, 2, ["split 3"])
    assert torch.equal(whole(data.others["split 3"])[0], torch.from_numpy(images[:3, None].astype("f4")) / 255)
    with pytest.raises(UserError, match=r"^data\.test_images and data\.test_labels: expected both or neither"):
        load("idx", images="im5", labels="la5", test_images=tests[0])


def test_a_compressed_file_is_decoded_by_one_rank(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    idx("im", X, gzip.compress)
    idx("la", Y, gzip.compress)
    calls: list[int] = []
    monkeypatch.setattr(gzip, "decompress", lambda content, real=gzip.decompress: calls.append(0) or real(content))
    threads.run(3, lambda comm: on_node(comm, lambda node: load("idx", node, images="im", labels="la")))
    assert len(calls) == 2
    (folder / "im").write_bytes((folder / "im").read_bytes()[:-9])

    def refusal(comm: Communicator) -> str:
        with pytest.raises(UserError) as caught:
            on_node(comm, lambda node: load("idx", node, images="im", labels="la"))
        return str(caught.value)

    [text] = set(threads.run(3, refusal))
    assert text.startswith("im: not a whole gzip file")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("bad", "words"), [
    ({}, None),
    ({0: np.nan}, r"x at \[0, 0\]: found nan, expected a finite number$"),
    ({13: np.inf}, r"x at \[6, 1\]: found inf, expected a finite number$"),
    ({5: 1e39, 9: np.nan, 13: np.inf}, r"x at \[2, 1\]: 1e\+39 is beyond float32, .*; 3 values are like it$"),
])  # fmt: skip
def test_ranks_check_their_shares_and_all_name_the_first(
    size: int, bad: dict[int, float], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvd_train.data.value_checks.CHUNK", 4)
    values = np.arange(14.0)
    for index, value in bad.items():
        values[index] = value

    def body(comm: Communicator) -> None:
        on_node(comm, lambda node: check_values(values.reshape(7, 2), at("x"), node))

    if words is None:
        threads.run(size, body)
    else:
        with pytest.raises(UserError, match=words.replace("$", r"( \(rank 0 .*)?$")):
            threads.run(size, body)


@pytest.mark.parametrize("kind", ["i8", "u8", "i4", ">i8"])
def test_the_first_integer_that_changes_is_found_exactly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd_train.data.value_checks.CHUNK", 16)
    limits = np.iinfo(kind)
    near = [2**n + d for n in range(20, 64) for d in (-3, -1, 0, 1, 2, 64)]
    numbers = np.array([v for n in near for v in (n, -n) if limits.min <= v <= limits.max] + [limits.min], kind)
    for number in numbers:
        values = np.array([0] * 20 + [number], kind)
        changes = int(np.float32(number)) != int(number)
        text = changed_integer(values, "float32", at("x"))
        assert (text is not None) == changes, number
        assert text is None or text.startswith(f"x at [20]: {number} becomes")


def table(columns: dict[str, Any] | str, file: str = "t.csv") -> str:
    """Write a table, a text as it is."""
    if isinstance(columns, str):
        Path(file).write_text(columns)
        return file
    arrow = pa.table(columns)
    if file.endswith(".parquet"):
        pa.parquet.write_table(arrow, file)
    elif file.endswith(".csv"):
        pa.csv.write_csv(arrow, file)
    else:
        new = pa.ipc.new_file if file.endswith(".feather") else pa.ipc.new_stream
        with new(file, arrow.schema) as writer:
            writer.write_table(arrow)
    return file


COLUMNS = {"id": list(range(12)), "a": X[:, 0, 0].tolist(), "kind": list("uvwuvwuvwuvw"), "y": (Y % 3).tolist()}
ENCODED: dict[str, Any] = {"target": "y", "standardise": True, "categorical": "onehot"}


@pytest.mark.parametrize("file", ["t.parquet", "t.feather", "t.arrow"])
def test_files_of_arrow_are_the_data_of_the_csv_file(file: str) -> None:
    one = load("csv", path=table(COLUMNS), **ENCODED)
    other = load("parquet", path=table(COLUMNS, file), **ENCODED)
    assert all(map(torch.equal, whole(one.train) + whole(one.test), whole(other.train) + whole(other.test)))
    assert one.preprocessing == other.preprocessing


def test_test_files_of_tables_are_prepared_as_the_training_rows() -> None:
    new = {"id": [0, 1], "a": [5, 7], "kind": ["w", "other"], "y": [1, 0]}
    paths = {"main": table(new, "new.csv"), "again": table(COLUMNS, "again.csv")}
    data = load("csv", path=table(COLUMNS), test_path=paths, **ENCODED)
    a = np.array(COLUMNS["a"])
    expected = [[(v - a.mean()) / a.std(), 0, 0, w] for v, w in ((5, 1), (7, 0))]
    torch.testing.assert_close(whole(data.test)[0], torch.tensor(expected, dtype=torch.float32))
    assert data.test.labels.tolist() == [1, 0]
    assert all(map(torch.equal, whole(data.train), whole(data.others["again"])))
    assert data.preprocessing == load("csv", path="t.csv", test_fraction=0, **ENCODED).preprocessing
    assert any("new.csv: column 'kind', line 3: 'other' is in no training row" in text for text in data.warnings)


@pytest.mark.parametrize(("text", "words"), [
    ("a,y\n1,0\ninf,1\n", "new.csv: column 'a', line 3: found inf"),
    ("a,y\n1,0\n,1\n", "new.csv: column 'a', line 3: 1 missing values"),
    ("a,y\nred,0\n", "new.csv: column 'a' is of type string, expected double as in t.csv"),
    ("a,y\n1,0.5\n", "new.csv: column 'y' is of type double, expected int64 as in t.csv"),
    ("a,b\n1,0\n", "new.csv: no column 'y' (choices: a, b)"),
    ("a,y\n", "new.csv: 0 rows, 1 features, expected at least one of each"),
    ("a,y\n1\n", "new.csv: line 2 has 1 values, expected 2"),
])  # fmt: skip
def test_a_test_file_that_does_not_fit_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load("csv", path=table("a,y\n1.5,0\n2,1\n"), test_path=table(text, "new.csv"), target="y")
    assert str(caught.value).startswith(words)


def test_a_table_is_read_by_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(pa.csv, "read_csv", lambda *a, real=pa.csv.read_csv, **k: calls.append(0) or real(*a, **k))
    one = load("csv", path=table(COLUMNS), **ENCODED)
    ranks = threads.run(3, lambda comm: on_node(comm, lambda node: load("csv", node, path="t.csv", **ENCODED)))
    assert len(calls) == 2
    for data in ranks:
        assert all(map(torch.equal, whole(data.train), whole(one.train)))
        assert (data.spec, data.warnings, data.preprocessing) == (one.spec, one.warnings, one.preprocessing)
    assert len(pickle.dumps(ranks[1].train)) < 1500
