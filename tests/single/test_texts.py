"""Texts and tokens: pieces of texts, tokenizers, the sources `text` and `tokens`, and `ddl data tokenize`."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.config.tokenize import TokenizeRequest
from hvd_train.data import preprocessing
from hvd_train.data.load import load
from hvd_train.data.tokenizers import bpe, file
from hvd_train.data.tokenizing import texts
from hvd_train.data.tokenizing.__main__ import tokenize
from hvd_train.data.tokenizing.base import describe
from hvd_train.errors import UserError

STORY = "The cat sat.\nThe dog ran; the cat sat too.\n\nÄpfel, größer — 猫。\n" * 20


class Words:
    """A tokenizer of a user: words of up to 9 letters become their lengths, other characters 0."""

    vocabulary = 10
    end = 9

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[min(len(word), 8) for word in text.split(" ")] for text in texts]


class Wrong(Words):
    vocabulary = 5
    end = None


def data(**options: Any) -> Any:
    return load(read_section(DataSection, Document(options, "test")))


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as raised:
        data(**options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two\nthree four", 7),
        ("one two\n\nthree four", 14),
        ("one\r\ntwo  three", 5 - 5 + 15),
        ("one two", 3),
        ("onetwo", 6),
        ("two\n", 4),
        ("aä", 3),
        ("a猫", 4),
    ],
)
def test_texts_are_cut_between_words(text: str, expected: int) -> None:
    assert texts.cut(text.encode()) == expected


@pytest.mark.parametrize(
    ("text", "missing", "expected"), [("aä", 1, 1), ("a猫", 1, 1), ("a猫", 2, 1), ("a😀", 1, 1), ("a😀", 3, 1)]
)
def test_no_character_is_cut(text: str, missing: int, expected: int) -> None:
    assert texts.whole_characters(text.encode()[:-missing]) == expected


@given(st.text(), st.integers(4, 9), st.integers(0, 5))
def test_pieces_are_the_text(text: str, size: int, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PIECE", size)
        stream = io.BytesIO(b"x" * start + text.encode() + b"\xff")
        stream.seek(start)
        assert "".join(texts.pieces(stream, "t", len(text.encode()))) == text
        stream.seek(start)
        with pytest.raises(UserError, match=f"t: byte {start + len(text.encode())} is 0xff, expected text in UTF-8"):
            [*texts.pieces(stream, "t")]


@given(st.lists(st.lists(st.text("ab ", min_size=1), max_size=3), max_size=5), st.integers(1, 6))
def test_documents_are_encoded_in_batches_with_an_end_token_each(documents: list[list[str]], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BATCH", size)
        tokens = [t for part in texts.encoded(documents, Words()) for t in part.tolist()]
    of_documents = ([n for piece in Words().encode(d) for n in piece] + [9] for d in documents if d)
    assert tokens == [t for document in of_documents for t in document]


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer: found the token 5, expected numbers below 5"):
        [*texts.encoded([["cat house"]], Wrong())]


def learned(vocabulary: int = 290) -> Any:
    return bpe.create(lambda: iter([STORY]), vocabulary=vocabulary)


def test_a_learned_tokenizer_is_the_same_every_time_and_from_its_file(tmp_path: Path) -> None:
    one = learned()
    assert one.describe() == learned().describe()
    assert one.vocabulary == 290
    (tmp_path / "run.json").write_text(json.dumps({"tokenizer": describe("bpe", one)}))
    (tmp_path / "own.json").write_text(one.describe()["json"])
    for name in ("run.json", "own.json"):
        again = file.create(path=str(tmp_path / name))
        assert again.encode([STORY]) == one.encode([STORY])
        assert (again.end, again.vocabulary) == (one.end, one.vocabulary)
    assert one.encode(["<|endoftext|>"]) == [[one.end]]


def test_a_file_encodes_whole_texts_without_noise(tmp_path: Path) -> None:
    content = json.loads(learned().describe()["json"])
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9999}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip
    content["model"]["dropout"] = 0.5
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert file.create(path=str(tmp_path / "t.json")).encode([STORY]) == learned().encode([STORY])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", {}, "not a tokenizer of the library tokenizers"),
        ("{}", {}, "expected an object with 'model'"),
        ('{"model": {"type": "BPE"}}', {}, "not a tokenizer of the library tokenizers"),
        (None, {"end": "<|endoftxt|>"}, "no token '<|endoftxt|>' in the vocabulary; did you mean '<|endoftext|>'?"),
    ],
)
def test_files_that_are_no_tokenizer(content: str | None, options: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(learned().describe()["json"] if content is None else content)
    with pytest.raises(UserError) as raised:
        file.create(path=str(tmp_path / "t.json"), **options)
    assert message in str(raised.value)


def story(tmp_path: Path, text: str = STORY) -> str:
    (tmp_path / "story.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "story.txt")


def decoded(split: Any, tokenizer: Any) -> str:
    first = split.batch(torch.arange(len(split)))[0]
    return str(tokenizer._tokenizer.decode(first.flatten().tolist(), skip_special_tokens=False))


def test_a_text_has_tokens_of_a_tokenizer_that_learns_from_the_training_part(tmp_path: Path) -> None:
    held_out = "Zebra zebra zebra zebra zebra zebra zebra. " * 20
    text = STORY + held_out
    fraction = len(held_out) / len(text.encode())
    options = {"paths": [story(tmp_path, text)], "length": 4, "test_fraction": fraction}
    made = data(name="text", tokenizer={"name": "bpe", "vocabulary": 290}, **options)
    tokenizer = learned(290)
    assert decoded(made.train, tokenizer) == STORY[: len(decoded(made.train, tokenizer))]
    assert decoded(made.test, tokenizer) == held_out[: len(decoded(made.test, tokenizer))]
    assert made.spec.outputs == 290
    x, y = made.train.batch(torch.tensor([0, 1]))
    assert x.dtype == y.dtype == torch.int64
    assert x.flatten().tolist()[1:] == y.flatten().tolist()[:-1]
    assert made.preprocessing["tokenizer"] == describe("bpe", tokenizer)


def test_documents_keep_their_ends_and_evaluations_have_names(tmp_path: Path) -> None:
    for name, text in {"a": "one two", "b": "", "c": "three", "d": "four four", "e": "five five"}.items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in "abc"]
    tests = {"near": str(tmp_path / "d"), "far": str(tmp_path / "e")}
    own = {"target": "tests.single.test_texts:Words"}
    made = data(name="text", paths=paths, tokenizer=own, test_path=tests, length=1)
    assert made.train.batch(torch.arange(4))[0].flatten().tolist() == [3, 3, 9, 5]
    assert made.test.batch(torch.arange(2))[0].flatten().tolist() == [4, 4]
    assert [*made.others] == ["far"]
    assert made.preprocessing["tokenizer"] == {"name": own["target"], "vocabulary": 10, "end": 9}


def test_bytes_are_the_default_and_cut_between_characters(tmp_path: Path) -> None:
    path = story(tmp_path, "ä" * 10)
    made = data(name="text", paths=[path], length=1, test_fraction=0.45)
    assert len(made.train.tokens) + len(made.test.tokens) == 20
    assert len(made.train.tokens) == 10
    assert made.preprocessing == {}
    assert data(name="text", paths=[path], length=1, tokenizer="bytes").spec.outputs == 256


def test_a_resumed_run_needs_the_tokenizer_of_the_run(tmp_path: Path) -> None:
    options = {"name": "text", "length": 4, "tokenizer": {"name": "bpe", "vocabulary": 280}}
    preprocessing.save(tmp_path, data(paths=[story(tmp_path)], **options))
    assert preprocessing.difference(tmp_path, data(paths=[story(tmp_path)], **options)) is None
    other = preprocessing.difference(tmp_path, data(paths=[story(tmp_path, STORY.upper())], **options))
    assert other is not None
    assert "tokenizer.sha256 is" in other
    assert len(other) < 500


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\xff\xfe", {"tokenizer": "bpe"}, "story.txt: byte 0 is 0xff, expected text in UTF-8"),
        (b"short", {}, "story.txt: 5 bytes for training, expected more than length=128"),
        (b"short", {"tokenizer": "bpe"}, "tokens for training, expected more than length=128"),
        (
            b"text",
            {"tokenizer": {"name": "bpe", "vocabulary": 9}},
            "tokenizer.vocabulary: expected greater than or equal to 257",
        ),
        (b"text", {"tokenizer": "bp"}, "tokenizer.name: no 'bp' here; did you mean 'bpe'?"),
        (b"text", {"tokenizer": {"name": "file", "path": "t.json"}}, "tokenizer.path: no file 't.json'"),
        (b"text", {"test_path": "gone"}, "data.test_path: no file 'gone'"),
    ],
)
def test_texts_that_are_refused(content: bytes, options: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_bytes(content)
    assert message in refusal(name="text", paths=[str(tmp_path / "story.txt")], **options)


def tokens(tmp_path: Path, values: Sequence[int], kind: str = "uint16", name: str = "t.bin", **beside: Any) -> str:
    np.array(values, kind).tofile(tmp_path / name)
    if beside:
        known = {"dtype": kind, "vocabulary": 100, "tokens": len(values), "tokenizer": {"name": "x"}}
        (tmp_path / f"{name}.json").write_text(json.dumps({**known, **beside}))
    return str(tmp_path / name)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens_of_several_files_are_windows(dtype: str, tmp_path: Path) -> None:
    one, two = tokens(tmp_path, range(1, 8), dtype), tokens(tmp_path, range(8, 14), dtype, "u.bin")
    made = data(name="tokens", paths=[one, two], length=3, dtype=dtype, vocabulary=50257, test_fraction=0.3)
    x, y = made.train.batch(torch.tensor([1, 0]))
    assert x.tolist() == [[4, 5, 6], [1, 2, 3]]
    assert y.tolist() == [[5, 6, 7], [2, 3, 4]]
    assert made.test.batch(torch.tensor([0]))[0].tolist() == [[10, 11, 12]]
    assert (made.spec.outputs, made.spec.task, made.spec.input_shape) == (50257, "language", (3,))


def test_the_file_beside_tokens_says_what_they_are(tmp_path: Path) -> None:
    train, test = (
        tokens(tmp_path, range(9), vocabulary=90),
        tokens(tmp_path, range(50, 60), name="v.bin", vocabulary=90),
    )
    made = data(name="tokens", paths=[train], test_path={"a": test, "b": train}, length=2)
    assert made.spec.outputs == 90
    assert made.preprocessing == {"tokenizer": {"name": "x"}}
    assert made.test.batch(torch.tensor([0]))[0].tolist() == [[50, 51]]
    assert [*made.others] == ["b"]
    assert data(name="tokens", paths=[train], vocabulary=128, length=2).spec.outputs == 128


@pytest.mark.parametrize(
    ("values", "beside", "options", "message"),
    [
        ([1] * 9, {}, {}, "data.vocabulary is missing: there is no "),
        (
            [1, 2, 300],
            {},
            {"vocabulary": 256},
            "t.bin: token number 2 is 300, expected tokens below the vocabulary of 256",
        ),
        ([1, 2], {}, {"vocabulary": 256}, "t.bin: 2 tokens for training, expected more than length=2"),
        (
            [300, 5] * 40,
            {},
            {"vocabulary": 99999},
            "second token is 0, as in numbers of four bytes; set data.dtype: uint32",
        ),
        ([1] * 9, {"tokens": 10}, {}, "t.bin: 18 bytes, expected 20 for 10 tokens in uint16, as "),
        ([1] * 9, {"dtype": "int8"}, {}, "t.bin.json: not what ddl data tokenize writes: dtype int8"),
        ([1] * 9, {"tokens": None}, {}, "t.bin.json: not what ddl data tokenize writes"),
        ([1] * 9, {"vocabulary": 90}, {"vocabulary": 80}, "data.vocabulary: 80, expected at least 90, as "),
        (
            [1] * 9,
            {"vocabulary": 90},
            {"dtype": "uint32"},
            "t.bin.json says that the tokens are uint16; leave dtype out",
        ),
        (
            [1] * 9,
            {},
            {"dtype": "uint32", "vocabulary": 9},
            "t.bin: 18 bytes, expected a multiple of 4, the size of uint32",
        ),
        (
            [1] * 8,
            {},
            {"dtype": "uint32", "vocabulary": 9},
            "token number 0 is 65537",
        ),
    ],
)
def test_tokens_that_are_refused(values: list[int], beside: Any, options: Any, message: str, tmp_path: Path) -> None:
    path = tokens(tmp_path, values, "uint32" if len(values) > 20 else "uint16", **beside)
    assert message in refusal(**{"name": "tokens", "paths": [path], "length": 2, "test_fraction": 0.0, **options})


@pytest.mark.parametrize(("rank", "other", "first"), [(0, 6, 6), (1, 1, 1), (1, None, 6)])
def test_the_ranks_of_a_node_share_the_check(rank: int, other: int | None, first: int, tmp_path: Path) -> None:
    """Tokens 1 and 6 of 8 are wrong. A rank finds the one in its half, and learns of the other one."""

    class NodeOfTwo:
        size = 2

        def gather(self, value: Any) -> list[Any]:
            assert value == (None if rank == 0 else 6)
            return [value, other] if rank == 0 else [other, value]

    NodeOfTwo.rank = rank  # type: ignore[attr-defined]
    path = tokens(tmp_path, [1, 99 if rank else 1, 1, 1, 1, 1, 99, 1])
    with pytest.raises(UserError, match=f"token number {first} is 99"):
        load(
            read_section(DataSection, Document({"name": "tokens", "paths": [path], "vocabulary": 50}, "t")),
            node=NodeOfTwo(),
        )


def test_tokens_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    one, two = (
        tokens(tmp_path, range(9), vocabulary=90),
        tokens(tmp_path, range(9), name="v.bin", tokenizer={"name": "y"}),
    )
    assert "v.bin: tokens of another tokenizer than" in refusal(name="tokens", paths=[one], test_path=two)


def test_a_wrong_token_of_a_described_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    one, two = tokens(tmp_path, range(5), vocabulary=50), tokens(tmp_path, [1, 2, 60, 1], name="v.bin", vocabulary=50)
    made = data(name="tokens", paths=[one, two], length=2, test_fraction=0.0)
    made.train.batch(torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"v.bin: token number 2 is 60, expected tokens below the vocabulary of 50"):
        made.train.batch(torch.tensor([1, 3]))


def request(
    tmp_path: Path, *inputs: Path, tokenizer: Any = "bytes", key: str = "text", output: str = "out.bin"
) -> TokenizeRequest:
    values = {"inputs": [*map(str, inputs)], "output": str(tmp_path / output), "key": key, "tokenizer": tokenizer}
    return read_section(TokenizeRequest, Document(values, "test"))


def written(tmp_path: Path, kind: str) -> Path:
    """Write two documents of which each is the same in every `kind` of file."""
    documents = ["one two\n", "three"]
    path = tmp_path / f"in.{kind}"
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in documents)
    content = (lines if "jsonl" in kind else documents[0]).encode()
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    if "jsonl" not in kind:
        (tmp_path / "second").write_text(documents[1])
    return path


OWN = {"target": "tests.single.test_texts:Words"}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "txt.gz", "jsonl.gz"])
def test_tokenize_writes_the_documents_of_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    inputs = [path] if "jsonl" in kind else [path, tmp_path / "second"]
    said = tokenize(request(tmp_path, *inputs, tokenizer=OWN))
    assert np.fromfile(tmp_path / "out.bin", np.uint16).tolist() == [3, 4, 9, 5, 9]
    beside = json.loads((tmp_path / "out.bin.json").read_text())
    assert beside == {
        "dtype": "uint16",
        "vocabulary": 10,
        "tokens": 5,
        "tokenizer": {"name": OWN["target"], "vocabulary": 10, "end": 9},
    }
    assert said.endswith("out.bin written: 5 tokens in uint16, 2.6 bytes per token, vocabulary of 10, 2 documents")
    made = data(name="tokens", paths=[str(tmp_path / "out.bin")], length=2, test_fraction=0.0)
    assert made.train.batch(torch.tensor([0, 1]))[0].tolist() == [[3, 4], [9, 5]]


def test_a_file_of_tokens_gives_its_tokenizer_to_the_next(tmp_path: Path) -> None:
    text = Path(story(tmp_path))
    tokenize(request(tmp_path, text, tokenizer={"name": "bpe", "vocabulary": 290}))
    again = {"name": "file", "path": str(tmp_path / "out.bin.json")}
    tokenize(request(tmp_path, text, tokenizer=again, output="again.bin"))
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "out.bin").read_bytes()
    both = [str(tmp_path / name) for name in ("out.bin", "again.bin")]
    assert data(name="tokens", paths=both[:1], test_path=both[1], length=2).spec.outputs == 290


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not JSON: Expecting value"),
        (
            "a.jsonl",
            b'{"txt": "x"}',
            "a.jsonl:1: no text at 'text'; did you mean 'txt'? (choices: txt); --key names it",
        ),
        ("a.jsonl", b"[1]", "a.jsonl:1: no text at 'text'; --key names it"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: half of a surrogate pair at character 0"),
        ("a.txt", b"ab\xff", "a.txt: byte 2 is 0xff, expected text in UTF-8"),
        ("a.txt", b"", "a.txt: no text, so there are no tokens"),
        ("a.txt.gz", b"text", "a.txt.gz: not a whole gzip file: Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"text" * 99, mtime=0)[:-9],
            "a.txt.gz: not a whole gzip file: Compressed file ended",
        ),
    ],
)
def test_inputs_that_tokenize_refuses_leave_nothing(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        tokenize(request(tmp_path, tmp_path / name))
    assert message in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("existing", ["out.bin", "out.bin.json"])
def test_tokenize_replaces_no_file(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("kept")
    path = written(tmp_path, "jsonl")
    with pytest.raises(UserError, match=f"--output: .*{existing} exists; give another name, or remove it"):
        tokenize(request(tmp_path, path))
    assert (tmp_path / existing).read_text() == "kept"
    assert {p.name for p in tmp_path.iterdir()} == {existing, path.name}
