import gzip
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data import files
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.load import load as load_section
from hvd_train.data.preprocessing import class_names
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError


def load(name: str, **options) -> Dataset:
    return plugins.create("hvd_train.data.sources", name, **options)


def of_target(target: str, **fields) -> Dataset:
    return load_section(read_section(DataSection, Document({"target": target, **fields}, "test")))


def whole(split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.batch(torch.arange(len(split)))


def refusal(name: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **options)
    return str(caught.value)


def rows(*splits) -> list[tuple]:
    """The samples of all splits as sorted tuples: equal lists mean the same samples."""
    return sorted(tuple(x.flatten().tolist()) for split in splits for x in whole(split)[0])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


class TestDigits:
    def test_is_the_whole_real_data_split_without_overlap(self):
        from sklearn.datasets import load_digits

        data = load("digits")
        assert (len(data.train), len(data.test)) == (1438, 359)
        images, digits = load_digits(return_X_y=True)
        assert rows(data.train, data.test) == sorted(map(tuple, images / 16))
        assert data.spec == DataSpec((1, 8, 8), 10, "classification")
        x, y = whole(data.train)
        assert (x.dtype, x.min(), x.max()) == (torch.float32, 0, 1)
        assert torch.equal(y, data.train.labels)
        known = dict(zip(map(tuple, images / 16), digits, strict=True))
        assert [known[tuple(image)] for image in x.flatten(1).tolist()] == y.tolist()

    def test_the_seed_chooses_the_split(self):
        assert rows(load("digits", seed=1).test) == rows(load("digits", seed=1).test)
        assert rows(load("digits", seed=1).test) != rows(load("digits").test)

    def test_without_scikit_learn_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(files, "find_spec", lambda name: None)
        assert "pip install -e '.[data]'" in refusal("digits")


class TestSynthetic:
    def test_has_the_sizes_asked_for_and_repeats(self):
        data = load("synthetic", samples=100, features=[3, 32, 32], classes=7, test_fraction=0.1)
        assert data.spec == DataSpec((3, 32, 32), 7, "classification")
        assert (len(data.train), len(data.test)) == (90, 10)
        again = load("synthetic", samples=100, features=[3, 32, 32], classes=7, test_fraction=0.1)
        assert all(map(torch.equal, whole(data.train), whole(again.train)))

    def test_a_linear_model_learns_all_but_the_noise(self):
        data = load("synthetic", samples=4096, classes=0, noise=0.1)
        assert data.spec == DataSpec((16,), 1, "regression")
        assert set(data.train.labels.tolist()) == {-1}
        solution = torch.linalg.lstsq(*whole(data.train)).solution
        x, y = whole(data.test)
        assert (x @ solution - y).std().item() == pytest.approx(0.1, rel=0.1)

    def test_the_seed_changes_everything(self):
        one, other = load("synthetic"), load("synthetic", seed=1)
        assert rows(one.train, one.test) != rows(other.train, other.test)

    def test_classes_are_those_asked_for_even_where_samples_are_few(self):
        assert load("synthetic", samples=3, classes=50).spec.outputs == 50


class TestNpz:
    def test_reads_arrays_by_name(self):
        np.savez("a.npz", images=np.arange(24).reshape(6, 2, 2), kinds=np.arange(6) % 3)
        data = load("npz", path="a.npz", x="images", y="kinds", test_fraction=0.5)
        assert data.spec == DataSpec((2, 2), 3, "classification")
        assert rows(data.train, data.test) == [tuple(range(i, i + 4)) for i in range(0, 24, 4)]
        x, y = whole(data.train)
        assert torch.equal(x[:, 0, 0].long() // 4 % 3, y)

    @pytest.mark.parametrize(("y", "task", "outputs"), [
        (np.arange(4)[:, None], "classification", 4),
        (np.array([True, False, True, False]), "classification", 2),
        (np.linspace(0, 1, 4), "regression", 1),
        (np.ones((4, 3)), "regression", 3),
        (np.ones((4, 3), int), "regression", 3),
    ])  # fmt: skip
    def test_targets_decide_the_task(self, y, task, outputs):
        np.savez("a.npz", x=np.ones(4), y=y)
        data = load("npz", path="a.npz", test_fraction=0)
        assert data.spec == DataSpec((1,), outputs, task)
        targets = whole(data.train)[1]
        assert targets.shape == ((4,) if task == "classification" else (4, outputs))
        assert targets.dtype == (torch.int64 if task == "classification" else torch.float32)

    def test_a_test_file_is_the_test_data(self):
        np.savez("a.npz", x=np.ones((3, 2)), y=np.array([0, 1, 0]))
        np.savez("b.npz", x=np.zeros((2, 2)), y=np.array([2, 0]))
        data = load("npz", path="a.npz", test_path="b.npz")
        assert (len(data.train), len(data.test), data.spec.outputs) == (3, 2, 3)
        assert whole(data.test)[0].sum() == 0
        np.savez("b.npz", x=np.zeros((2, 5)), y=np.array([2, 0]))
        text = refusal("npz", path="a.npz", test_path="b.npz")
        assert "b.npz: samples of shape (5,)" in text
        assert "expected (2,)" in text
        np.savez("b.npz", x=np.zeros((2, 2)), y=np.array([2.5, 0]))
        assert "with 1 target values, expected (2,) with classes" in refusal("npz", path="a.npz", test_path="b.npz")

    @pytest.mark.parametrize(("arrays", "words"), [
        ({"x": np.ones(3), "y": np.ones(2)}, "3 inputs but 2 targets"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "empty, expected at least one sample"),
        ({"x": np.array([{}, {}]), "y": np.ones(2)}, "array 'x' cannot be read: Object arrays"),
        ({"x": np.array(["a", "b"]), "y": np.ones(2)}, "array 'x' is <U1 of shape (2,), expected numbers"),
        ({"x": np.ones(2), "y": np.array(1)}, "array 'y' is int64 of shape (), expected numbers"),
        ({"x": np.ones(2), "y": np.array([0, -1])}, "found the class -1"),
        ({"x": np.ones(2), "labels": np.ones(2)}, "no array 'y' (choices: labels, x)"),
        ({"x": np.ones(1), "y": np.ones(1)}, "test_fraction 0.9 leaves none of 1 samples for training"),
    ])  # fmt: skip
    def test_unusable_arrays_are_refused(self, arrays, words):
        np.savez("a.npz", **arrays)
        text = refusal("npz", path="a.npz", test_fraction=0.9)
        assert text.startswith("a.npz: ")
        assert words in text

    def test_other_files_are_refused(self, folder):
        (folder / "data.npz").write_bytes(b"not an archive")
        assert "data.npz: not an .npz file" in refusal("npz", path="data.npz")
        text = refusal("npz", path="dat.npz")
        assert text == "data.path: no file 'dat.npz'; did you mean 'data.npz'? (choices: data.npz)"
        assert refusal("npz", path="no/such.npz") == "data.path: no file 'no/such.npz'"
        np.savez("good.npz", x=np.ones(3), y=np.ones(3))
        assert "data.test_path: no file" in refusal("npz", path="good.npz", test_path="bad.npz")


TABLE = {
    "when": [1.6e9 + i for i in range(8)],
    "count": [3, 1, 4, 1, 5, 9, 2, 6],
    "flag": [True, False] * 4,
    "kind": ["b", "a", "c", "a", "b", "c", "a", "b"],
    "group": [7, -1, 7, 7, 3, 3, -1, 7],
    "price": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5],
}


def write(name: str, table: dict | pa.Table) -> str:
    table = table if isinstance(table, pa.Table) else pa.table(table)
    writer = {"csv": pyarrow.csv.write_csv, "parquet": pyarrow.parquet.write_table}[name]
    writer(table, f"table.{name}")
    return f"table.{name}"


@pytest.mark.parametrize("name", ["csv", "parquet"])
class TestTables:
    def test_text_becomes_classes_in_sorted_order(self, name):
        data = load(name, path=write(name, TABLE), target="kind", features=["count", "flag"], test_fraction=0)
        assert data.spec == DataSpec((2,), 3, "classification")
        x, y = whole(data.train)
        count, flag, kind = TABLE["count"], TABLE["flag"], TABLE["kind"]
        expected = sorted(zip(count, flag, ["abc".index(k) for k in kind], strict=True))
        assert sorted(zip(*x.T.tolist(), y.tolist(), strict=True)) == expected

    def test_integers_become_classes_and_other_numbers_a_regression(self, name):
        path = write(name, TABLE)
        classes = load(name, path=path, target="group", features=["price"], test_fraction=0)
        assert classes.spec == DataSpec((1,), 3, "classification")
        assert classes.train.labels.bincount().tolist() == [2, 2, 4]
        numbers = load(name, path=path, target="price", features=["count"], test_fraction=0)
        assert numbers.spec == DataSpec((1,), 1, "regression")
        assert sorted(whole(numbers.train)[1].flatten().tolist()) == TABLE["price"]

    def test_the_task_can_be_chosen(self, name):
        path = write(name, TABLE)
        numbers = load(name, path=path, target="group", features=["price"], task="regression", test_fraction=0)
        assert sorted(whole(numbers.train)[1].flatten().tolist()) == sorted(TABLE["group"])
        assert load(name, path=path, target="price", features=["count"], task="classification").spec.outputs == 8

    def test_all_other_columns_are_the_default_features(self, name):
        path = write(name, {"a": [1.0, 2.0], "y": [0.1, 0.2], "b": [3.0, 4.0]})
        assert rows(load(name, path=path, target="y", test_fraction=0).train) == [(1, 3), (2, 4)]

    def test_standardises_by_the_training_part_alone(self, name):
        table = {"when": TABLE["when"], "same": [5.0] * 8, "y": TABLE["price"]}
        data = load(name, path=write(name, table), target="y", standardise=True, test_fraction=0.5)
        x, y = whole(data.train)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.mean(0), torch.zeros(2))
        assert torch.equal(x[:, 1], torch.zeros(4))
        torch.testing.assert_close(x[:, 0].std(correction=0), torch.tensor(1.0))
        test_x, test_y = whole(data.test)
        expected = (test_y - y.mean()) / y.std(correction=0)
        torch.testing.assert_close(test_x[:, :1], expected)

    @pytest.mark.parametrize(("options", "words"), [
        ({"target": "pric"}, ["no column 'pric'; did you mean 'price'?"]),
        ({"target": "price", "features": ["cuont"]}, ["no column 'cuont'; did you mean 'count'?"]),
        ({"target": "price"}, ["column 'kind'", "is of type string, expected numbers"]),
        ({"target": "kind", "features": ["count"], "task": "regression"}, ["column 'kind'", "expected numbers"]),
        ({"target": "price", "features": ["price"]}, ["target 'price' is among the features"]),
    ])  # fmt: skip
    def test_columns_that_do_not_fit_are_refused(self, name, options, words):
        text = refusal(name, path=write(name, TABLE), **options)
        assert text.startswith(f"table.{name}: ")
        assert all(word in text for word in words)

    @pytest.mark.parametrize("values", [[1.5, None, None, 2.5], ["a", None, None, "b"], [1, None, None, 2]])
    def test_missing_values_are_counted(self, name, values):
        path = write(name, {"a": [1, 2, 3, 4], "y": values})
        assert "2 missing values in column 'y'" in refusal(name, path=path, target="y")

    def test_tables_without_samples_are_refused(self, name):
        empty = pa.table({"a": pa.array([], pa.int64()), "y": pa.array([], pa.int64())})
        assert "0 rows, 1 features" in refusal(name, path=write(name, empty), target="y")
        assert "2 rows, 0 features" in refusal(name, path=write(name, {"y": [1, 2]}), target="y")
        twice = pa.table([[1], [2], [3]], names=["a", "a", "y"])
        assert "columns a, a, y" in refusal(name, path=write(name, twice), target="y")

    def test_other_files_are_refused(self, name, folder):
        (folder / "bad").write_bytes(b"a,b\n1,2,3\n")
        assert refusal(name, path="bad", target="b").startswith(
            "bad: line 2 has 3 values" if name == "csv" else "bad: not a"
        )
        assert "data.path: no file 'worse'" in refusal(name, path="worse", target="b")

    def test_without_pyarrow_says_what_to_install(self, name, monkeypatch):
        path = write(name, TABLE)
        monkeypatch.setitem(sys.modules, f"pyarrow.{name}", None)
        assert "pip install -e '.[data]'" in refusal(name, path=path, target="price")


@pytest.mark.parametrize("target", ["kind", "group", "price"])
def test_csv_and_parquet_of_one_table_are_the_same_data(target):
    features = ["when", "count", "flag"]
    csv, parquet = (
        load(name, path=write(name, TABLE), target=target, features=features, standardise=True)
        for name in ("csv", "parquet")
    )
    assert csv.spec == parquet.spec
    for one, other in ((csv.train, parquet.train), (csv.test, parquet.test)):
        assert all(map(torch.equal, whole(one), whole(other)))


def test_parquet_has_missing_values_as_nan_and_types_of_its_own():
    import decimal

    path = write("parquet", {"a": [1.0, float("nan")], "y": [1, 2]})
    assert "1 missing values in column 'a'" in refusal("parquet", path=path, target="y")
    prices = [decimal.Decimal("1.5"), decimal.Decimal("2.5")]
    kinds = pa.array(["u", "v"]).dictionary_encode()
    path = write("parquet", {"a": prices, "y": kinds, "z": [[1], [2]], "n": [1, 2]})
    assert rows(load("parquet", path=path, target="y", features=["a"], test_fraction=0).train) == [(1.5,), (2.5,)]
    assert load("parquet", path=path, target="a", features=["n"], test_fraction=0).spec.task == "regression"
    assert "column 'z', row 0 (from 0): '[1]' is of type list" in refusal(
        "parquet", path=path, target="z", features=["a"]
    )


def idx(path, array, code: int, compress: bool = False) -> str:
    """Write `array` in the IDX format, by the letter of its description."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)
    return path.name


IMAGES = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4)
LABELS = np.array([3, 1], np.uint8)


class TestIdx:
    @pytest.mark.parametrize("compress", [False, True])
    @pytest.mark.parametrize(("code", "dtype"), [
        (0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8"),
    ])  # fmt: skip
    def test_reads_every_type_plain_and_compressed(self, folder, code, dtype, compress):
        images = IMAGES.astype(dtype) - (0 if dtype == "u1" else 5)
        data = load(
            "idx",
            images=idx(folder / "images", images, code, compress),
            labels=idx(folder / "labels", LABELS, 0x08, compress),
        )
        assert data.spec == DataSpec((1, 3, 4), 4, "classification")
        assert len(data.test) == 0
        x, y = whole(data.train)
        scale = 255 if dtype == "u1" else 1
        torch.testing.assert_close(x[:, 0], torch.tensor(images / scale, dtype=torch.float32))
        assert y.tolist() == [3, 1]

    def test_reads_test_files(self, folder):
        files = {"images": idx(folder / "images", IMAGES, 0x0C), "labels": idx(folder / "labels", LABELS, 0x08)}
        tests = {
            "test_images": idx(folder / "t-images", IMAGES[:1], 0x0C),
            "test_labels": idx(folder / "t-labels", np.array([5], np.uint8), 0x08),
        }

        data = load("idx", **files, **tests)
        assert (len(data.train), len(data.test), data.spec.outputs) == (2, 1, 6)
        assert "expected both or neither" in refusal("idx", **files, test_images="t-images")
        assert "data.test_labels: no file" in refusal("idx", **files, **tests | {"test_labels": "gone"})

    @pytest.mark.parametrize(("content", "words"), [
        (b"", "expected an IDX header"),
        (b"PNG.", "starts with 50 4e 47 2e, expected an IDX header"),
        (b"\0\0\x0a\1\0\0\0\0", "starts with 00 00 0a 01, expected an IDX header"),
        (b"\0\0\x08\0\1", "images is uint8 of shape ()"),
        (b"\0\0\x08\3\0\0\0\1", "8 bytes, expected a header of 16"),
        (b"\0\0\x08\1\0\0\0\2\1", "9 bytes, expected 10 for uint8 of shape (2,)"),
        (b"\0\0\x08\1\0\0\0\2\1\1\1", "11 bytes, expected 10"),
        (b"\0\0\x08\1\0\0\0\0", "empty, expected at least one sample"),
        (gzip.compress(bytes(99), mtime=0)[:-9], "not a whole gzip file"),
    ])  # fmt: skip
    def test_damaged_files_are_refused(self, folder, content, words):
        (folder / "images").write_bytes(content)
        none = idx(folder / "labels", LABELS[:0], 0x08)
        text = refusal("idx", images="images", labels=none)
        assert text.startswith("images")
        assert words in text

    def test_images_and_labels_must_be_as_many(self, folder):
        images, labels = idx(folder / "images", IMAGES, 0x0C), idx(folder / "labels", LABELS[:1], 0x08)
        assert "2 inputs but 1 targets" in refusal("idx", images=images, labels=labels)


class TestText:
    def test_each_token_is_predicted_from_those_before_it(self, folder):
        (folder / "a").write_bytes(bytes(range(60)))
        (folder / "b").write_bytes(bytes(range(60, 100)))
        data = load("text", paths=["a", "b"], length=7, test_fraction=0.25)
        assert data.spec == DataSpec((7,), 256, "language")
        x, y = whole(data.train)
        assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
        assert x.flatten().tolist() == list(range(70))
        assert torch.equal(y, x + 1)
        assert whole(data.test)[0].flatten().tolist() == list(range(75, 96))
        assert data.train.labels.tolist() == [-1] * 10
        assert data.train.batch(torch.tensor([3]))[0].tolist() == [list(range(21, 28))]

    @pytest.mark.parametrize(("size", "samples"), [(8, 0), (9, 1), (16, 1), (17, 2)])
    def test_a_sample_needs_one_token_more_than_its_length(self, folder, size, samples):
        (folder / "a").write_bytes(bytes(17 + size))
        data = load("text", paths=["a"], length=8, test_fraction=size / (17 + size))
        assert (len(data.train), len(data.test)) == (2, samples)

    @pytest.mark.parametrize("size", [0, 8])
    def test_too_short_a_text_is_refused(self, folder, size):
        (folder / "a").write_bytes(bytes(size))
        text = refusal("text", paths=["a"], length=8, test_fraction=0)
        assert text == f"a: {size} bytes for training, expected more than length=8"

    def test_a_missing_file_is_named(self):
        assert "data.paths: no file 'gone'" in refusal("text", paths=["gone"])


SOURCE = """
import torch
from torch.utils.data import TensorDataset, random_split
from hvd_train.data.base import Dataset, tensor_split
from hvd_train.data.spec import DataSpec

X = torch.arange(12.0).reshape(6, 2)

class Map:
    def __init__(self, label, reads=None):
        self.label, self.reads = label, reads
    def __len__(self):
        return 6
    def __getitem__(self, i):
        return X[i], self.label(i)

class Transformed(Map):
    targets, target_transform = [9] * 6, abs

class WithTargets(Map):
    targets, classes = [0, 1, 2, 3, 4, 5], ["a", "b", "c", "d", "e", "f"]
    def __getitem__(self, i):
        assert i == 0, "the labels are known, so other samples are not read"
        return super().__getitem__(i)

def own(): return Dataset(tensor_split(X, X), tensor_split(X, X), DataSpec((2,), 9, "regression"))
def classes(): return Map(lambda i: i % 3)
def numbers(): return Map(lambda i: i / 2)
def pair(): return Map(lambda i: i % 3), Map(lambda i: i)
def known(): return WithTargets(lambda i: 0)
def transformed(): return Transformed(lambda i: i % 2)
def tensors(): return TensorDataset(X, torch.arange(6, dtype=torch.int32))
def columns(): return TensorDataset(X, X[:, 0])
def parts(): return tuple(random_split(tensors(), [4, 2]))
def sized(n): return TensorDataset(X[:n], X[:n])
def odd(value): return value
def negative(): return Map(lambda i: i - 1)
def tokens(): return TensorDataset(X, X.long())
"""


class TestTarget:
    @pytest.fixture(autouse=True)
    def source(self, folder, monkeypatch):
        (folder / "mine.py").write_text(SOURCE)
        monkeypatch.delitem(sys.modules, "mine", raising=False)

    def test_a_data_set_of_ours_is_taken_as_it_is(self):
        assert of_target("mine:own").spec.outputs == 9

    @pytest.mark.parametrize(("name", "outputs", "test"), [
        ("classes", 3, 0), ("pair", 6, 6), ("known", 6, 0), ("transformed", 2, 0), ("tensors", 6, 0), ("parts", 6, 2),
    ])  # fmt: skip
    def test_classes_are_counted(self, name, outputs, test):
        data = of_target(f"mine:{name}")
        assert data.spec == DataSpec((2,), outputs, "classification")
        assert len(data.test) == test
        assert data.train.labels.dtype == torch.int64
        x, y = data.train.batch(torch.tensor([0, 0]))
        assert torch.equal(y, data.train.labels[[0, 0]] if name != "known" else torch.zeros(2))
        assert x.shape == (2, 2)

    def test_classes_have_the_names_that_a_data_set_of_torchvision_gives(self):
        assert class_names(of_target("mine:known")) == ["a", "b", "c", "d", "e", "f"]
        assert class_names(of_target("mine:classes")) is None

    def test_tensors_are_not_stacked_sample_by_sample(self):
        assert isinstance(of_target("mine:tensors").train, TensorSplit)

    @pytest.mark.parametrize("name", ["numbers", "columns"])
    def test_numbers_are_columns(self, name):
        data = of_target(f"mine:{name}")
        assert data.spec == DataSpec((2,), 1, "regression")
        assert data.train.labels.tolist() == [-1] * 6
        scale = 2 if name == "columns" else 0.5
        assert data.train.batch(torch.tensor([3, 1]))[1].tolist() == [[3 * scale], [1 * scale]]

    @pytest.mark.parametrize(("name", "args", "words"), [
        ("sized", {"n": 0}, "no training samples"),
        ("odd", {"value": 5}, "returned a value of type int, expected a torch data set"),
        ("odd", {"value": "abc"}, "returned a value of type str, expected a torch data set"),
        ("negative", {}, "found the class -1"),
    ])  # fmt: skip
    def test_anything_else_is_refused(self, name, args, words):
        with pytest.raises(UserError) as caught:
            of_target(f"mine:{name}", args=args)
        text = str(caught.value)
        assert text.startswith(f"target 'mine:{name}'")
        assert words in text
