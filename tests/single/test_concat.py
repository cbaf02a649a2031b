"""Mixtures of data sources, and sections of data sources within an option."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor

from hvd_train.config.document import Document, parse
from hvd_train.config.json_schema import json_schema
from hvd_train.config.launch import Launch, parse_document, to_document
from hvd_train.config.resolve import read_section, resolve, target_sections
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset
from hvd_train.data.load import read_source
from hvd_train.data.memory.node import ALONE
from hvd_train.data.mixtures import MixedStream, mixture_counts
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, start, samples in (("a", 0, 6), ("b", 100, 3)):
        x = np.arange(start, start + 2 * samples, dtype=np.float32).reshape(samples, 2)
        np.savez(f"{name}.npz", x=x, y=np.arange(samples) % 3)
    return tmp_path


def concat(*sources: dict[str, Any], **options: Any) -> Dataset:
    values = {"name": "concat", "sources": [*sources], **options}
    return read_source(read_section(DataSection, Document(values, "test")), ALONE)


def npz(name: str, **options: Any) -> dict[str, Any]:
    return {"name": "npz", "path": f"{name}.npz", "test_fraction": 0.0, **options}


def first_values(split: Any, positions: list[int] | None = None) -> list[float]:
    return split.batch(torch.arange(len(split)) if positions is None else torch.tensor(positions))[0][:, 0].tolist()


def alone(name: str) -> list[float]:
    """The first value of each sample of a source by itself."""
    return first_values(read_source(read_section(DataSection, Document(npz(name), "test")), ALONE).train)


def refusal(*sources: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        concat(*sources, **options)
    return str(caught.value)


def test_all_samples_follow_one_another_and_a_batch_keeps_its_order() -> None:
    data = concat(npz("a"), npz("b"))
    x = [*alone("a"), *alone("b")]
    assert first_values(data.train) == x
    assert first_values(data.train, [8, 0, 6, 5]) == [x[8], x[0], x[6], x[5]]
    assert data.train.labels.tolist() == data.train.batch(torch.arange(9))[1].tolist()
    assert data.train.batch(torch.tensor([7, 3]))[1].tolist() == [data.train.labels[7], data.train.labels[3]]
    assert data.spec == DataSpec((2,), 3, "classification")


@pytest.mark.parametrize(
    ("lengths", "weights", "counts"),
    [((6, 3), (1, 1), (6, 6)), ((6, 3), (1, 3), (6, 18)), ((6, 3), (2, 1), (6, 3)), ((6, 4), (9, 1), (36, 4))],
)
def test_an_epoch_is_the_shortest_with_every_sample(lengths: Any, weights: Any, counts: Any) -> None:
    assert mixture_counts(lengths, weights) == counts


def test_weights_repeat_the_samples_of_the_other_sources() -> None:
    data = concat(npz("a"), npz("b"), weights=[1.0, 2.0])
    assert Counter(first_values(data.train)) == {
        **dict.fromkeys(range(0, 12, 2), 1),
        **dict.fromkeys((100, 102, 104), 4),
    }
    assert len(data.train.labels) == len(data.train) == 18


def test_held_out_samples_are_those_of_all_sources_once() -> None:
    data = concat(npz("a", test_fraction=0.5), npz("b", test_path="a.npz"), weights=[1.0, 9.0])
    assert len(data.test) == 3 + 6


def test_a_target_may_be_a_source(folder: Path) -> None:
    (folder / "made_for_concat.py").write_text(
        "import torch\n"
        "def make(count: int):\n"
        "    return torch.utils.data.TensorDataset(torch.ones(count, 2), torch.zeros(count, dtype=torch.int64))\n"
    )
    data = concat({"target": "made_for_concat:make", "count": 2}, npz("b"))
    assert first_values(data.train) == [1, 1, *alone("b")]
    section = read_section(
        DataSection, Document({"name": "concat", "sources": [{"target": "made_for_concat:make", "count": 2}]}, "")
    )
    assert list(target_sections(section)) == [(("sources", 0, "target"), "made_for_concat:make")]


def test_mixtures_may_hold_mixtures() -> None:
    data = concat({"name": "concat", "sources": [npz("b"), npz("b")]}, npz("a"))
    assert first_values(data.train) == [*alone("b"), *alone("b"), *alone("a")]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"name": "synthetic", "samples": 9, "features": [5]}, "sources[1] (synthetic) has samples of shape (5,)"),
        (
            {"name": "synthetic", "features": [2], "classes": 0},
            "for regression with 1 outputs, expected samples of shape",
        ),
    ],
)
def test_sources_that_differ_are_refused_with_both_descriptions(other: dict[str, Any], words: str) -> None:
    message = refusal(npz("a"), other)
    assert words in message
    assert "as sources[0] (npz)" in message


def test_equal_numbers_of_classes_with_other_names_are_refused(folder: Path) -> None:
    (folder / "a.csv").write_text("x,kind\n1,cat\n2,dog\n")
    (folder / "b.csv").write_text("x,kind\n1,cat\n2,horse\n")
    table = {"name": "csv", "target": "kind", "test_fraction": 0.0}
    message = refusal({**table, "path": "a.csv"}, {**table, "path": "b.csv"})
    assert "(cat, horse)" in message
    assert "(cat, dog)" in message


def test_another_number_of_weights_is_refused() -> None:
    assert refusal(npz("a"), weights=[1.0, 2.0]) == "data.weights: 2 weights for 1 sources, expected one for each"


@dataclass(frozen=True)
class Letters:
    """A stream whose part `part` holds the letters from `part` on, every `parts`-th."""

    text: str
    name: str = "letters"

    def raw(self, part: int, parts: int, epoch: int) -> Any:
        return iter(self.text[part::parts])

    def sample(self, raw: str) -> str:
        return raw.upper()


def letters(weights: tuple[float, ...], *texts: str, part: int = 0, parts: int = 1) -> str:
    mixture = MixedStream(tuple(map(Letters, texts)), weights, "mixed")
    return "".join(map(mixture.sample, mixture.raw(part, parts, 0)))


def test_streams_follow_one_another_or_alternate_by_weight_until_each_ended() -> None:
    assert letters((), "abc", "xy") == "ABCXY"
    assert letters((2.0, 1.0), "abcd", "xy") == "AXBCYD"
    assert letters((1.0, 1.0), "abcd", "xy") == "AXBYCXD"
    assert letters((1.0, 1.0), "abcd", "xy", part=1, parts=2) == "BYD"
    assert letters((1.0, 1.0), "abcd", "x", part=1, parts=2) == "BD"


@dataclass(frozen=True)
class Words:
    """Items of one word each."""

    words: tuple[str, ...]
    name: str = "words"

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self.words),), -1)

    def __len__(self) -> int:
        return len(self.words)

    def item(self, index: int) -> Any:
        return self.words[index]


def test_items_are_mixed_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "worded.py").write_text(
        "from hvd_train.data.base import Dataset\nfrom hvd_train.data.spec import DataSpec\n"
        "from tests.single.test_concat import Words\n"
        "def make(*, words: list):\n"
        "    return Dataset(Words(tuple(words)), Words(()), DataSpec((), 0, 'other'))\n"
    )
    one, other = ({"target": "worded:make", "words": words} for words in (["a", "b"], ["c"]))
    data = concat(one, other, weights=[1.0, 1.0])
    assert [data.train.item(i) for i in range(len(data.train))] == ["a", "b", "c", "c"]


class TestSections:
    TEXT = (
        "model: mlp\ndata:\n  name: concat\n  sources:\n  - {name: digits, test_fraction: 0.5}\n  - {name: npz, %s}\n"
    )

    def mistakes(self, options: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            resolve(parse(self.TEXT % options, "m.yaml"))
        return str(caught.value).splitlines()

    def test_mistakes_have_the_line_and_the_path_of_their_section(self) -> None:
        assert self.mistakes("paht: a.npz") == [
            "m.yaml:6: data.sources.1.path: is missing",
            "m.yaml:6: data.sources.1.paht: unknown key; did you mean 'path'? (choices: name, path, seed, test_fraction, "
            "test_path, x, y)",
        ]
        assert self.mistakes("path: 3") == ["m.yaml:6: data.sources.1.path: expected a string, got 3"]

    def test_a_name_without_a_member_is_told_with_the_nearest(self) -> None:
        with pytest.raises(UserError, match=r"m.yaml:1: data.sources.0.name: no 'digitts' here; did you mean 'digits'"):
            resolve(parse("{model: mlp, data: {name: concat, sources: [digitts]}}", "m.yaml"))

    def test_an_empty_list_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"data.sources: expected .*at least 1 item"):
            resolve(parse("{model: mlp, data: {name: concat, sources: []}}", "m.yaml"))

    def test_the_document_for_the_ranks_has_the_sections(self) -> None:
        config = resolve(parse(self.TEXT % "path: a.npz", "m.yaml"))
        again, _ = parse_document(to_document(config, Launch(engine="mpi", world_size=1, output="runs")))
        assert again.model_dump() == config.model_dump()
        assert [section.options for section in again.data.sources] == [
            section.options for section in config.data.sources
        ]

    def test_the_schema_checks_the_sections(self) -> None:
        check = jsonschema.Draft202012Validator(json_schema())
        source: dict[str, Any] = {"name": "npz", "path": "a"}
        nested = {"name": "concat", "sources": [source, "digits"]}
        values = {"model": {"name": "mlp"}, "data": {"name": "concat", "sources": [source, nested]}}
        assert check.is_valid(values)
        source["paht"] = "b"
        assert not check.is_valid(values)
