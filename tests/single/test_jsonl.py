"""The source `jsonl`."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.options import TokenizerSection
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset
from hvd_train.data.memory.node import ALONE
from hvd_train.data.records.paths import braces
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *lines: Any) -> str:
    """Write lines, which are values of JSON or texts as they are."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    with gzip.open(name, "wb") if name.endswith(".gz") else open(name, "wb") as file:
        file.write(text.encode())
    return name


def load(*lines: Any, path: Any = None, **options: Any) -> Dataset:
    options = {"inputs": "x", "target": "y", "test_fraction": 0.0, **options}
    return plugins.create("hvd_train.data.sources", "jsonl", ALONE, path=path or write("a.jsonl", *lines), **options)


def samples(split: Any) -> list[Any]:
    return [plain(split.item(i)) for i in range(len(split))]


def plain(value: Any) -> Any:
    """The value with lists in place of tensors."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def ordered(split: Any) -> list[Any]:
    return sorted(samples(split), key=str)


def refusal(*lines: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*lines, **options)
    return str(caught.value)


def damage(*lines: Any, **options: Any) -> str:
    """The message for the only damaged line."""
    train = load(*lines, **options).train
    with pytest.raises(UserError) as caught:
        samples(train)
    assert train.damage == str(caught.value)
    return str(caught.value)


class TestSamples:
    def test_numbers_are_inputs_and_integers_are_classes(self) -> None:
        data = load({"x": [1.5, 2], "y": 1}, {"x": [3, 4], "y": 0})
        assert ordered(data.train) == [([1.5, 2.0], 1), ([3.0, 4.0], 0)]
        assert data.train.item(0)[0].dtype == torch.float32
        assert data.spec == DataSpec((2,), 2, "classification")
        assert data.train.labels.tolist() == [data.train.item(i)[1] for i in range(2)]

    def test_integers_stay_integers_unless_a_line_has_a_fraction_or_dtype_says_so(self) -> None:
        lines = [{"x": [7], "y": 0}, {"x": [8, 9], "y": 1}]
        data = load(*lines)
        assert {data.train.item(i)[0].dtype for i in (0, 1)} == {torch.int64}
        assert data.spec.input_shape == ()
        mixed = load(*lines, {"x": [0.5], "y": 1})
        assert {mixed.train.item(i)[0].dtype for i in range(3)} == {torch.float32}
        assert load(*lines, dtype="float32").train.item(0)[0].dtype == torch.float32

    def test_a_single_number_is_an_input_of_one_value(self) -> None:
        data = load({"x": 3, "y": 0.5}, {"x": 4.5, "y": 1})
        assert ordered(data.train) == [([3.0], [0.5]), ([4.5], [1.0])]
        assert data.spec == DataSpec((1,), 1, "regression")

    def test_texts_are_classes_in_sorted_order_which_are_kept(self) -> None:
        data = load({"x": 0, "y": "dog"}, {"x": 1, "y": "cat"}, {"x": 2, "y": "dog"})
        assert ordered(data.train) == [([0], 1), ([1], 0), ([2], 1)]
        assert data.preprocessing == {"target": {"name": "y", "classes": ["cat", "dog"]}}

    def test_nested_keys_lists_of_keys_and_names_of_arguments(self) -> None:
        line = {"a": {"b": {"c": 1.5}}, "d.e": [1, 2], "y": {"z": 1}}
        keys = {"target": "y.z"}
        assert samples(load(line, inputs=["a.b.c", "d.e"], **keys).train) == [(1.5, [1, 2], 1)]
        assert samples(load(line, inputs={"left": "d.e"}, **keys).train) == [{"left": [1, 2], "labels": 1}]
        assert samples(load(line, inputs={"left": "a"}, target=None).train) == [{"left": {"b": {"c": 1.5}}}]

    def test_lists_of_equal_length_are_a_regression_and_others_stay_lists(self) -> None:
        equal = load({"x": 1, "y": [1, 0]}, {"x": 2, "y": [0.5, 1]})
        assert (equal.spec.task, equal.spec.outputs) == ("regression", 2)
        uneven = load({"x": 1, "y": [4]}, {"x": 2, "y": [0, 1]})
        assert (uneven.spec.task, uneven.spec.outputs) == ("other", 5)
        assert ordered(uneven.train) == [([1], [4]), ([2], [0, 1])]

    def test_texts_without_a_tokenizer_stay_texts(self) -> None:
        assert samples(load({"x": "é\u2028", "y": True}).train) == [("é\u2028", 1)]

    def test_blank_lines_and_ends_of_lines_of_windows_are_no_samples(self) -> None:
        data = load(path=write("b.jsonl", "", '{"x": 1, "y": 0}\r', "   ", "\t\r", '\ufeff{"x": 2, "y": 1}', ""))
        assert ordered(data.train) == [([1], 0), ([2], 1)]

    def test_the_last_line_needs_no_end(self) -> None:
        Path("c.jsonl").write_text('{"x": 1, "y": 0}\n{"x": 2, "y": 1}')
        assert ordered(load(path="c.jsonl").train) == [([1], 0), ([2], 1)]


class TestFiles:
    def test_patterns_and_compressed_files_follow_one_another(self) -> None:
        for number in range(3):
            write(f"p-{number}.jsonl" + ".gz" * (number == 1), {"x": number, "y": number})
        data = load(path=["p-*.jsonl", "p-{0..1}.jsonl*"])
        assert ordered(data.train) == [([n], n) for n in (0, 0, 1, 2)]

    def test_held_out_sets_have_names_and_the_classes_of_the_training_data(self) -> None:
        lines = [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
        write("t.jsonl", {"x": 3, "y": "b"})
        write("u.jsonl", {"x": 4, "y": "a"})
        data = load(*lines, test_path={"near": "t.jsonl", "far": "u.jsonl"})
        assert (samples(data.train), samples(data.test)) == ([([1], 0), ([2], 1)], [([3], 1)])
        assert {name: samples(split) for name, split in data.others.items()} == {"far": [([4], 0)]}
        write("t.jsonl", {"x": 3, "y": "c"})
        assert refusal(*lines, test_path="t.jsonl").startswith(
            "t.jsonl: line 1: 'y': found 'c', expected a class of the"
        )

    def test_a_fraction_is_held_out_once(self) -> None:
        data = load(*({"x": n, "y": n % 2} for n in range(10)), test_fraction=0.3)
        assert len(data.test) == 3
        assert sorted(x[0] for x, _ in [*samples(data.train), *samples(data.test)]) == list(range(10))

    def test_a_pickled_split_holds_no_line(self) -> None:
        lines = [{"x": "text " * 1000, "y": n % 2} for n in range(50)]
        train = load(*lines).train
        packed = pickle.dumps(train)
        assert len(packed) < 3000
        assert samples(pickle.loads(packed)) == samples(train)

    @pytest.mark.parametrize(
        ("pattern", "texts"),
        [
            ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
            ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
            ("plain", ["plain"]),
        ],
    )
    def test_braces(self, pattern: str, texts: list[str]) -> None:
        assert list(braces(pattern)) == texts

    def test_missing_and_empty_files_are_refused(self) -> None:
        write("d.jsonl", {"x": 1, "y": 1})
        assert refusal(path="e.jsonl").startswith("data.path: no file 'e.jsonl'; did you mean 'd.jsonl'?")
        assert refusal(path="z*.jsonl") == "data.path: no file matches 'z*.jsonl'"
        assert refusal(path=write("f.jsonl", "")) == "f.jsonl: no lines, expected one JSON object on each line"
        Path("g.gz").write_bytes(gzip.compress(b"1" * 99)[:-9])
        assert refusal(path="g.gz").startswith("g.gz: not a whole gzip file")


GOOD = {"x": 1, "y": 0}


class TestDamage:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"x": 1, "y": }', "line 3, column 15: not JSON: Expecting value, found '}'"),
            ('{"x": 1', "line 3, column 8: not JSON: Expecting ',' delimiter, found the end of the line"),
            ('{"x": NaN, "y": 1}', "line 3, column 7: found NaN, expected a finite number"),
            ("[1, 2]", "line 3: found '[1, 2]', expected an object"),
            ('{"x": 1, "yy": 1}', "line 3: no key 'y'; did you mean 'yy'? (choices: x, yy)"),
            ('{"x": null, "y": 1}', "line 3: 'x': found null, expected a value"),
            ('{"x": 99999999999999999999, "y": 1}', "line 3: 'x': found 99999999999999999999, expected an integer of"),
        ],
    )
    def test_a_damaged_line_is_named_and_the_others_are_samples(self, line: str, message: str) -> None:
        assert damage(GOOD, "", line, GOOD).startswith(f"a.jsonl: {message}")

    def test_numbers_beyond_float32_are_damage(self) -> None:
        train = load({"x": 1e39, "y": 1}, GOOD).train
        with pytest.raises(UserError, match=r"line 1: 'x': found 1e\+39, expected at most 3.4e\+38"):
            samples(train)

    def test_bytes_that_are_no_text_have_their_column(self) -> None:
        Path("h.jsonl").write_bytes(b'{"x": 1, "y": 0}\n{"x": 1, "\xff": 0}\n')
        assert damage(path="h.jsonl").startswith("h.jsonl: line 2, column 11: the byte 0xff is not text in UTF-8")

    def test_files_without_a_good_line_are_refused_at_once(self) -> None:
        assert refusal("{", "}").startswith("a.jsonl: line 1, column 2: not JSON")

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            (["a", 1], {}, "line 2: 'y': found an integer (1), expected a text as before"),
            ([1, "a"], {}, "line 2: 'y': found a text (a), expected an integer as before"),
            ([0.5, 1], {"task": "classification"}, "line 1: 'y': found a number (0.5), expected values for task: cl"),
            (["a", "b"], {"task": "regression"}, "line 1: 'y': found a text (a), expected values for task: regression"),
            ([0, -1], {}, "line 2: 'y': found the class -1 among 2 samples, expected classes 0, 1, 2, ..."),
            ([[1], "a"], {}, "line 2: 'y': found a text (a), expected a list as before"),
        ],
    )
    def test_targets_of_several_kinds_are_refused(self, values: Any, options: Any, message: str) -> None:
        assert refusal(*({"x": 1, "y": y} for y in values), **options).startswith(f"a.jsonl: {message}")

    def test_integers_that_float32_changes_are_told(self) -> None:
        data = load({"x": [2**24 + 1, 0.5], "y": 0}, {"x": [2**24 + 1, 2], "y": 1})
        assert any("16777217" in text and "identifiers are no inputs" in text for text in data.warnings)


def test_inputs_must_not_be_empty() -> None:
    values = {"name": "jsonl", "path": "a.jsonl", "inputs": []}
    with pytest.raises(UserError, match=r"inputs: expected .* at least 1 item"):
        read_section(DataSection, Document(values, "test"))


class TestTokens:
    def test_without_a_target_each_token_is_predicted_from_those_before(self) -> None:
        data = load({"x": "abc"}, {"x": "a"}, target=None, tokenizer=TokenizerSection(), length=8)
        assert data.spec == DataSpec((8,), 256, "language")
        with pytest.raises(UserError, match="line 2: a text of 1 tokens, expected at least 2"):
            samples(data.train)
        whole = load({"x": "abc"}, target=None, tokenizer=TokenizerSection(), length=2)
        assert samples(whole.train) == [([97], [98])]

    def test_texts_of_a_classification_become_tokens(self) -> None:
        data = load({"x": "ab", "y": "up"}, {"x": "c", "y": "down"}, tokenizer=TokenizerSection())
        assert ordered(data.train) == [([97, 98], 1), ([99], 0)]
        assert data.preprocessing["tokenizer"]["name"] == "bytes"

    def test_target_texts_become_tokens_for_a_language_task(self) -> None:
        line = {"x": "ab", "y": "cd"}
        assert samples(load(line, task="language", tokenizer=TokenizerSection()).train) == [([97, 98], [99, 100])]
        assert refusal(line, task="language").startswith("data.tokenizer is missing")

    def test_a_tokenizer_learns_from_the_training_texts(self) -> None:
        section = read_section(TokenizerSection, Document({"name": "bpe", "vocabulary": 258}, "test"))
        data = load(*[{"x": "abab", "y": 0}] * 4, tokenizer=section)
        assert data.train.item(0)[0].max() >= 256
        assert samples(pickle.loads(pickle.dumps(data.train))) == samples(data.train)
