"""Cross-validation: folds of every source are disjoint, cover its samples, and let nothing of the held-out ones through."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from sklearn.model_selection import TimeSeriesSplit
from torch.utils.data import IterableDataset, TensorDataset

from hvd_train.config.document import Document
from hvd_train.config.fold_section import FoldSection
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset
from hvd_train.data.hold_out import HoldOut, fold_rows
from hvd_train.data.load import load as load_section
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.errors import UserError
from hvd_train.rank.node import on_node
from hvd_train.saved.run import find_run
from tests.bodies import trained
from tests.engines import threads

pytestmark = pytest.mark.filterwarnings("error:The groups parameter is ignored")

COUNT, FOLDS, ODD = 30, 5, 13
"""Samples of each source, folds, and the sample that `odd` files change."""
LABELS = np.array([0] * 15 + [1] * 9 + [2] * 6)[np.random.default_rng(0).permutation(COUNT)]
GROUPS = np.arange(COUNT) * 7 % COUNT // 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def load(options: dict[str, Any], fold: dict[str, Any] | None, node: Node = ALONE, fitted: Any = None) -> Dataset:
    section = read_section(DataSection, Document({**options, **({} if fold is None else {"fold": fold})}, "a.yaml"))
    return load_section(section, node=node, fitted=fitted)


def folds(options: dict[str, Any], repeats: int = 1, **fold: Any) -> Iterator[Dataset]:
    for index in range(FOLDS * repeats):
        yield load(options, {"folds": FOLDS, "index": index, "repeats": repeats, **fold})


def refusal(options: dict[str, Any], **fold: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            load(options, {"folds": FOLDS, **fold})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(odd: bool = False) -> list[dict[str, Any]]:
    """The rows of a table. Number `ODD` is an outlier if `odd`."""
    rows: list[dict[str, Any]] = [
        {"number": float(i), "label": f"class {LABELS[i]}", "group": f"g{GROUPS[i]}", "text": f"w{i:02d}"}
        for i in range(COUNT)
    ]
    if odd:
        rows[ODD] |= {"number": 1e6, "text": "zebra zebra zebra zebra"}
    return rows


def csv(odd: bool = False, name: str = "t.csv") -> dict[str, Any]:
    lines = ["number,label,group,text", *(",".join(map(str, row.values())) for row in table(odd))]
    Path(name).write_text("\n".join(lines) + "\n")
    return {"name": "csv", "path": name, "target": "label", "features": ["number"]}


def parquet(odd: bool = False) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(table(odd)), "t.parquet")
    return {"name": "parquet", "path": "t.parquet", "target": "label", "features": ["number"]}


def jsonl(odd: bool = False) -> dict[str, Any]:
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table(odd)))
    return {"name": "jsonl", "path": "t.jsonl", "inputs": "number", "target": "label"}


def huggingface(odd: bool = False) -> dict[str, Any]:
    return {"name": "huggingface", "path": parquet(odd)["path"], "inputs": "number", "target": "label"}


def arrays(odd: bool = False) -> dict[str, np.ndarray]:
    x = np.arange(COUNT, dtype=np.float32)[:, None]
    x[ODD] = 1e6 if odd else x[ODD]
    return {"x": x, "y": LABELS, "group": GROUPS, "lengths": np.ones(COUNT, np.int64)}


def npz(odd: bool = False) -> dict[str, Any]:
    np.savez("t.npz", **arrays(odd))
    return {"name": "npz", "path": "t.npz"}


def safetensors(odd: bool = False) -> dict[str, Any]:
    save_file(arrays(odd), "t.safetensors")
    return {"name": "safetensors", "path": "t.safetensors"}


def sequences(odd: bool = False) -> dict[str, Any]:
    return {**npz(odd), "name": "sequences"}


def npy() -> dict[str, Any]:
    np.save("x.npy", arrays()["x"])
    np.save("y.npy", LABELS)
    return {"name": "npy", "x": "x.npy", "y": "y.npy"}


def idx() -> dict[str, Any]:
    for name, array in (("x", np.arange(COUNT)[:, None]), ("y", LABELS)):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        Path(f"{name}.idx").write_bytes(head + array.astype("u1").tobytes())
    return {"name": "idx", "images": "x.idx", "labels": "y.idx"}


def classified_texts(odd: bool = False) -> dict[str, Any]:
    return {"name": "text_classification", "path": csv(odd)["path"], "tokenizer": "bytes"}


def translation(odd: bool = False) -> dict[str, Any]:
    return {
        "name": "translation",
        "path": csv(odd)["path"],
        "source_column": "text",
        "target_column": "label",
        "tokenizer": {"name": "bpe", "vocabulary": 257},
    }


def ratings(odd: bool = False) -> dict[str, Any]:
    rows = [f"u{'zed' if odd and i == ODD else GROUPS[i]},item {i},{i},{100 - i}" for i in range(COUNT)]
    Path("r.csv").write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
    return {"name": "ratings", "path": "r.csv"}


def images() -> dict[str, Any]:
    for i in range(COUNT):
        Image.fromarray(np.full((1, 1), i, np.uint8)).save(f"{i}.png")
    rows = [f"{i}.png,class {LABELS[i]},{GROUPS[i]}" for i in range(COUNT)]
    Path("images.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    return {"name": "images", "path": "images.csv", "mode": "grey"}


class Own(torch.utils.data.Dataset[Any]):
    """A data set of a user, which is not in memory and knows the groups of its samples."""

    groups = GROUPS

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(self.first + i)]), int(LABELS[i])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([torch.zeros(1)])


OWN = "target 'tests.single.test_folds:own'"


def own() -> tuple[Any, Any]:
    return Own(), Own(first=100)


def in_memory() -> TensorDataset:
    return TensorDataset(torch.from_numpy(arrays()["x"]), torch.from_numpy(LABELS))


def target(name: str = "own") -> dict[str, Any]:
    return {"target": f"tests.single.test_folds:{name}"}


def tensors() -> dict[str, Any]:
    return target("in_memory")


def mixture() -> dict[str, Any]:
    return {"name": "concat", "sources": [npz()]}


GROUPED: list[Callable[[], dict[str, Any]]] = [
    csv, parquet, jsonl, huggingface, npz, safetensors, sequences, classified_texts, translation, images, mixture,
]  # fmt: skip
"""Sources whose groups have a name."""
SOURCES = [*GROUPED, npy, idx, ratings, target, tensors]
REGRESSIONS = [ratings, translation]


def numbers(split: Any, name: str) -> list[int]:
    """Return the numbers of the samples of `split`, in their order."""
    if name == "translation":
        return [int(split.items.texts(i)[0][1:]) for i in range(len(split))]
    batch = split.batch(torch.arange(len(split)))
    if name == "text_classification":
        return [int(bytes(row[1:].tolist())) for row in batch["input_ids"]]
    if name == "ratings":
        return [int(rating) for rating in batch[1][:, 0]]
    x = batch["x"] if name == "sequences" else batch[0]
    return [
        round(value * (255 if name in {"images", "idx"} else 1)) for value in x.reshape(len(split), -1)[:, 0].tolist()
    ]


def both(data: Dataset, options: dict[str, Any]) -> tuple[list[int], list[int]]:
    name = options.get("name", "target")
    return numbers(data.train, name), numbers(data.test, name)


@pytest.mark.parametrize("write", SOURCES)
def test_folds_are_disjoint_cover_all_samples_and_have_equal_shares_of_each_class(write: Any) -> None:
    options, held_out = write(), []
    for data in folds(options):
        train, test = both(data, options)
        assert sorted([*train, *test]) == list(range(COUNT))
        assert not data.others
        if write not in REGRESSIONS:
            assert np.bincount(LABELS[test], minlength=3).tolist() in ([3, 1, 1], [3, 2, 1], [3, 2, 2], [3, 1, 2])
            assert torch.equal(data.test.labels, torch.from_numpy(LABELS[test]))
        assert len(test) == COUNT / FOLDS
        held_out += test
    assert sorted(held_out) == list(range(COUNT))


@pytest.mark.parametrize("write", [*GROUPED, ratings, target])
def test_no_group_is_on_both_sides(write: Any) -> None:
    options, held_out = write(), []
    named = {} if write in (ratings, target) else {"group": "group"}
    for data in folds(options, kind="grouped", **named):
        train, test = both(data, options)
        assert not set(GROUPS[train]) & set(GROUPS[test])
        assert len(test) >= 4
        held_out += test
    assert sorted(held_out) == list(range(COUNT))


@pytest.mark.parametrize("write", SOURCES)
def test_only_what_precedes_the_fold_in_time_trains(write: Any) -> None:
    options = write()
    if write is ratings:  # later rows have earlier times
        options["split"] = "time"
    expected = TimeSeriesSplit(FOLDS).split(np.arange(COUNT))
    for data, rows in zip(folds(options, kind="auto" if write is ratings else "time"), expected, strict=True):
        train, test = both(data, options)
        if write is ratings:
            train, test = (sorted(COUNT - 1 - i for i in part) for part in (train, test))
        assert (train, test) == tuple(part.tolist() for part in rows)
        assert max(train) < min(test)


@pytest.mark.parametrize("write", [csv, npz, jsonl, target])
def test_repeats_divide_differently_and_each_covers(write: Any) -> None:
    options = write()
    tests = [sorted(both(data, options)[1]) for data in folds(options, repeats=3)]
    divisions = [tests[start : start + FOLDS] for start in range(0, 3 * FOLDS, FOLDS)]
    assert all(sorted(chain(*division)) == list(range(COUNT)) for division in divisions)
    assert divisions[0] != divisions[1] != divisions[2] != divisions[0]
    if write is not target:  # the second repetition has the next seed
        again = [sorted(both(data, options)[1]) for data in folds({**options, "seed": 1})]
        assert again == divisions[1]


@pytest.mark.parametrize("write", [csv, npz, jsonl, classified_texts, images, ratings, target])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_agree_on_the_fold(write: Any, ranks: int) -> None:
    options, fold = write(), {"folds": FOLDS, "index": 3}
    one = both(load(options, fold), options)
    assert threads.run(ranks, lambda comm: on_node(comm, lambda node: both(load(options, fold, node), options))) == (
        [one] * ranks
    )


def bpe(write: Callable[[bool], dict[str, Any]], **inputs: Any) -> Callable[[bool], dict[str, Any]]:
    return lambda odd: {**write(odd), "tokenizer": {"name": "bpe", "vocabulary": 270}, **inputs}


@pytest.mark.parametrize("write", [
    lambda odd: {**csv(odd), "standardise": True},
    lambda odd: {**csv(odd), "features": ["text"], "categorical": "code"},
    lambda odd: {**parquet(odd), "standardise": True},
    lambda odd: {**sequences(odd), "standardise": True},
    bpe(classified_texts),
    bpe(translation),
    bpe(jsonl, inputs="text"),
    bpe(huggingface, inputs="text"),
    ratings,
])  # fmt: skip
def test_nothing_is_fitted_on_held_out_samples(write: Callable[[bool], dict[str, Any]]) -> None:
    """What is in data.json changes with a sample only if the sample trains."""
    differ = []
    for index in range(FOLDS):
        fold = {"folds": FOLDS, "index": index, "kind": "plain"}
        plain, odd = (load(write(is_odd), fold).preprocessing for is_odd in (False, True))
        differ.append({**plain, "seen": None} != {**odd, "seen": None})
    assert sorted(differ) == [False, *[True] * (FOLDS - 1)]


def test_digits_are_stratified_and_cover() -> None:
    tests = [data.test for data in folds({"name": "digits"})]
    assert [len(test) for test in tests] == [360, 360, 359, 359, 359]
    counts = torch.stack([test.labels.bincount() for test in tests])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    whole = load({"name": "digits", "test_fraction": 0.0}, None).train.x.flatten(1)
    found = torch.cat([test.x.flatten(1) for test in tests])
    assert torch.equal(found.sort(0).values, whole.sort(0).values)


@pytest.mark.parametrize("name", ["text", "tokens"])
def test_a_text_has_consecutive_folds(name: str) -> None:
    options: dict[str, Any] = {"name": name, "paths": ["a", "b"], "length": 1}
    for part, values in (("a", range(70)), ("b", range(70, 121))):
        Path(part).write_bytes(np.array(values, "u1" if name == "text" else "u2").tobytes())
    if name == "tokens":
        options["vocabulary"] = 200

    def tokens(split: Any) -> list[int]:
        x, y = split.batch(torch.arange(len(split)))
        return [*x.flatten().tolist(), int(y[-1])]

    parts = [tokens(data.test) for data in folds(options)]
    assert parts == [[*range(121 * i // FOLDS, 121 * (i + 1) // FOLDS)] for i in range(FOLDS)]
    for data, part in zip(folds(options), parts, strict=True):
        assert tokens(data.train) == [i for i in range(121) if i not in part]
    for data, rows in zip(folds(options, kind="time"), TimeSeriesSplit(FOLDS).split(range(121)), strict=True):
        assert [tokens(data.train), tokens(data.test)] == [part.tolist() for part in rows]
    assert "kind: stratified" in refusal(options, kind="stratified")
    assert "no repeats" in refusal(options, repeats=2)


def test_ratings_of_each_user_are_divided_evenly() -> None:
    rows = [f"{user},{item},{10 * user + item}" for user in range(3) for item in range(10)]
    Path("r.csv").write_text("\n".join(["user,item,rating", *rows]) + "\n")
    for data in folds({"name": "ratings", "path": "r.csv", "split": "user"}):
        assert sorted(int(value) // 10 for value in data.test.ratings.values) == [0, 0, 1, 1, 2, 2]
    for data in folds({"name": "ratings", "path": "r.csv"}, kind="grouped", group="item"):
        train, test = ({int(value) % 10 for value in part.ratings.values} for part in (data.train, data.test))
        assert (len(train), len(test), train & test) == (8, 2, set())


def test_given_test_samples_are_left_out() -> None:
    """Their files are not even opened."""
    cases: dict[Any, dict[str, Any]] = {
        csv: {"test_path": "none.csv"},
        npy: {"test_x": "none", "test_y": "none"},
        translation: {"test_rows": {"label": "class 2"}},
    }
    for write, options in cases.items():
        one, other = ([both(data, write()) for data in folds({**write(), **more})] for more in ({}, options))
        assert one == other
    with pytest.raises(UserError, match=r"none\.csv"):
        load({**csv(), "test_path": "none.csv"}, None)


def test_new_files_are_encoded_as_in_training_and_divided_alike() -> None:
    options, fold = {**csv(), "standardise": True}, {"folds": FOLDS, "index": 2}
    data = load(options, fold)
    fitted = {**data.preprocessing, "input_shape": [1], "outputs": 3, "task": "classification"}
    again = load(options, fold, fitted=fitted)
    assert all(map(torch.equal, *(d.test.batch(torch.arange(len(d.test))) for d in (data, again))))


def test_test_samples_that_a_command_names_replace_the_fold_of_a_run(folder: Path) -> None:
    fold: dict[str, Any] = {"folds": FOLDS, "index": 4, "kind": "plain"}
    run = trained.train(folder, {"model": "mlp", "data": {**csv(), "fold": fold}, "train": {"steps": 1}})
    for options in ([], ["test_fraction=0.5"], ["seed=2"]):
        section = find_run(run, options).config.data
        assert section.fold == FoldSection(**fold)
    assert find_run(run, ["path=new.csv", "test_path=new.csv"]).config.data.fold is None
    (folder / "plain").mkdir()  # the word is no path, though there is one
    assert find_run(run).config.data.fold == FoldSection(**fold)


CHOICES = "did you mean 'group'? (choices: group, label, number, text)"


@pytest.mark.parametrize(("write", "fold", "words"), [
    (csv, {"folds": 31, "kind": "plain"}, "t.csv: 31 folds of kind plain need 31 samples, found 30; expected fewer FOLDS"),
    (csv, {"folds": 7}, "t.csv: 7 folds of kind stratified need 7 samples in the smallest class, found 6; expected fewer "
     "FOLDS, or data.fold.kind: plain"),
    (npz, {"folds": 30, "kind": "time"}, "t.npz: 30 folds of kind time need 31 samples, found 30; expected fewer FOLDS"),
    (csv, {"folds": 9, "group": "group"}, "t.csv: 9 folds of kind grouped need 9 groups, found 8; expected fewer FOLDS"),
    (csv, {"group": "grupe"}, f"data.fold.group: no column 'grupe' in t.csv; {CHOICES}"),
    (huggingface, {"group": "grupe"}, f"data.fold.group: no column 'grupe' in t.parquet; {CHOICES}"),
    (jsonl, {"group": "grupe"}, f"t.jsonl: line 1: no key 'grupe'; {CHOICES}"),
    (classified_texts, {"group": "grupe"}, f"t.csv: no column 'grupe'; {CHOICES}"),
    (npz, {"group": "grupe"}, "t.npz: no array 'grupe'; did you mean 'group'? (choices: group, lengths, x, y)"),
    (npz, {"group": "x"}, "t.npz: array 'x' is float32 of shape (30, 1), expected one integer for each of 30 samples"),
    (npy, {"group": "group"}, "data.fold.group: 'group' is no column of x.npy, which has no named columns"),
    (target, {"group": "group"}, f"data.fold.group: 'group' is no column of {OWN}, which has no named columns"),
    (csv, {"kind": "grouped"}, "data.fold.group: is missing; name the column with the group of each sample"),
    (csv, {"kind": "plain", "group": "x"}, "a.yaml: fold: 'group' is for kind: grouped, and 'kind' is plain; set kind: grouped"),
    (csv, {"index": 5}, "a.yaml: fold: 'index' is 5, expected at most 4 for 5 folds and 1 repeats"),
    (csv, {"kind": "time", "repeats": 2}, "a.yaml: fold: kind: time has one division only; leave 'repeats' out"),
    (csv, {"folds": 1}, "a.yaml: fold.folds: expected greater than or equal to 2, got 1"),
    (translation, {"kind": "stratified"}, "t.csv: data.fold.kind: stratified needs classes, and the targets are none; take "
     "plain"),
    (lambda: {**ratings(), "negatives": 1}, {"kind": "grouped"}, "data.fold.kind: grouped by 'user' holds out new ones only, "
     "which a ranking (data.negatives) leaves out; take plain, stratified or time"),
    (lambda: target("Endless"), {}, "data.fold: target 'tests.single.test_folds:Endless' is a stream without positions, which "
     "has no folds; leave data.fold out"),
    (lambda: {"name": "gymnasium", "env": "CartPole-v1"}, {}, "data.fold: 'gymnasium' has environments, and only samples have "
     "folds; leave data.fold out"),
])  # fmt: skip
def test_bad_folds_are_refused_in_one_sentence(write: Any, fold: dict[str, Any], words: str) -> None:
    kind = {"kind": "grouped"} if "group" in fold else {}
    assert refusal(write(), **{**kind, **fold}) == words.replace("FOLDS", "data.fold.folds")


def test_a_group_whose_classes_are_rare_is_no_error_of_scikit_learn() -> None:
    """No class has five members, so only the sizes of the parts can be balanced."""
    labels, groups = torch.arange(10) // 3, torch.arange(10) // 2
    for index in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fold = FoldSection(folds=5, index=index, kind="grouped")
            assert len(fold_rows(10, fold, 0, "", labels, groups)[1]) == 2


@given(
    st.integers(2, 6), st.integers(1, 3), st.lists(st.integers(0, 3), min_size=6, max_size=60),
    st.sampled_from(["plain", "stratified", "grouped", "time"]), st.integers(0, 2**63 - 2**10), st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_folds_of_a_division(
    number: int, repeats: int, values: list[int], kind: Any, seed: int, data: st.DataObject
) -> None:
    repeats = 1 if kind == "time" else repeats
    labels = torch.tensor(values)
    groups = data.draw(st.lists(st.integers(0, 9), min_size=len(values), max_size=len(values)))
    repetition, held_out = data.draw(st.integers(0, repeats - 1)), []
    hold_out = [
        HoldOut(0.5, seed, FoldSection(folds=number, index=number * repetition + i, kind=kind, repeats=repeats))
        for i in range(number)
    ]
    enough = {"stratified": min(v for v in labels.bincount().tolist() if v), "grouped": len(set(groups))}
    if enough.get(kind, len(values)) < number + (kind == "time"):
        with pytest.raises(UserError, match="expected fewer"):
            hold_out[0].rows(len(values), "a", labels, groups)
        return
    for one in hold_out:
        train, test = (rows.tolist() for rows in one.rows(len(values), "a", labels, groups))
        assert [train, test] == [rows.tolist() for rows in one.rows(len(values), "a", labels, groups)]
        assert train
        assert test
        if kind == "time":
            assert train == list(range(min(test)))
        else:
            assert sorted(train + test) == list(range(len(values)))
        if kind == "grouped":
            assert not {groups[i] for i in train} & {groups[i] for i in test}
        held_out.append(test)
    everything = sorted(chain(*held_out))
    assert everything == list(range(len(values) - len(everything), len(values)))
    if kind in {"plain", "stratified"}:
        sizes = [len(test) for test in held_out]
        assert max(sizes) - min(sizes) <= 1
    if kind == "stratified":
        counts = torch.stack([labels[test].bincount(minlength=4) for test in held_out])
        assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
