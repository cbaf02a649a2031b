"""The source `huggingface`."""

from __future__ import annotations

import io
import json
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from hvd_train.config import plugins
from hvd_train.config.options import TokenizerSection
from hvd_train.data.base import Dataset
from hvd_train.data.memory.node import ALONE
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def table(first: int = 0, rows: int = 6, **columns: Any) -> Any:
    numbers = range(first, first + rows)
    return datasets.Dataset.from_dict(
        {"x": [[float(n), 0.5] for n in numbers], "y": [n % 3 for n in numbers], **columns}
    )


def load(path: Any, **options: Any) -> Dataset:
    options = {"inputs": "x", "target": "y", "test_fraction": 0.0, **options}
    return plugins.create("hvd_train.data.sources", "huggingface", ALONE, path=path, **options)


def refusal(path: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    return str(caught.value)


def items(split: Any) -> list[Any]:
    """All samples, from a copy that was pickled, by their first number."""
    copy = pickle.loads(pickle.dumps(split))
    return sorted((x.tolist(), y.tolist()) for x, y in map(copy.item, range(len(copy))))


EXPECTED = [([n, 0.5], n % 3) for n in range(6)]


@pytest.fixture
def saved() -> str:
    datasets.DatasetDict({"train": table(), "test": table(6, 3), "far": table(9, 2)}).save_to_disk("saved")
    return "saved"


class TestFiles:
    def test_a_saved_folder_is_mapped_and_has_splits(self, saved: str) -> None:
        data = load(saved, test_split={"near": "test", "far": "far"})
        assert items(data.train) == EXPECTED
        assert data.spec == DataSpec((2,), 3, "classification")
        assert [x[0] for x, _ in items(data.test)] == [6, 7, 8]
        assert [x[0] for x, _ in items(data.others["far"])] == [9, 10]
        assert len(pickle.dumps(data.train.table)) < 3000

    def test_a_saved_folder_of_one_data_set_is_the_training_split(self) -> None:
        table().save_to_disk("one")
        assert items(load("one").train) == EXPECTED
        assert refusal("one", split="tran").startswith("data.split: no 'tran' in 'one'; did you mean 'train'?")

    @pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
    def test_files_are_patterns(self, ending: str) -> None:
        for number in range(2):
            part = table(3 * number, 3)
            if ending == "csv":
                part = part.map(lambda row: {"x": row["x"][0]})
            {"parquet": part.to_parquet, "jsonl": part.to_json, "csv": part.to_csv}[ending](f"p{number}.{ending}")
        data = load(f"p*.{ending}")
        assert items(data.train) == (EXPECTED if ending != "csv" else [([x[0]], y) for x, y in EXPECTED])

    def test_a_fraction_is_held_out_once(self, saved: str) -> None:
        data = load(saved, test_fraction=0.5)
        assert len(data.test) == 3
        assert sorted(items(data.train) + items(data.test)) == EXPECTED
        assert data.train.labels.tolist() == [data.train.item(i)[1].item() for i in range(3)]

    def test_damaged_files_are_refused_with_their_name(self) -> None:
        Path("bad.parquet").write_text("no Parquet")
        assert refusal("bad.parquet").startswith("data.path: 'bad.parquet' cannot be read, split 'train': Parquet")
        Path("bad.jsonl").write_text('{"x": 1}\n{"x": \n')
        assert refusal("bad.jsonl").startswith("data.path: 'bad.jsonl' cannot be read, split 'train': JSON parse error")
        assert refusal("none.parquet").startswith("data.path: no file 'none.parquet'; did you mean 'bad.parquet'?")


class TestHub:
    def test_a_name_without_a_network_is_refused_at_once(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        def unreachable(*arguments: Any) -> None:
            raise OSError

        monkeypatch.setattr(socket, "create_connection", unreachable)
        monkeypatch.setattr("hvd_train.data.hub.getproxies", dict)
        (folder / "imdb2").mkdir()
        message = refusal("imdb")
        assert message.startswith("data.path: no local folder or file 'imdb'; did you mean 'imdb2'?")
        assert message.endswith("and https://huggingface.co cannot be reached from this host")


class TestColumns:
    def test_names_of_classes_and_columns(self) -> None:
        kinds = datasets.Features(
            {"t": datasets.Value("string"), "y": datasets.ClassLabel(names=["cat", "dog", "eel"])}
        )
        datasets.Dataset.from_dict({"t": ["a", "b"], "y": [1, 0]}, features=kinds).save_to_disk("c")
        data = load("c", inputs=None)
        assert data.spec == DataSpec((), 3, "classification")
        assert data.preprocessing == {"target": {"name": "y", "classes": ["cat", "dog", "eel"]}}
        assert [data.train.item(i)["labels"].item() for i in range(2)] == data.train.labels.tolist()
        assert {data.train.item(i)["t"] for i in range(2)} == {"a", "b"}
        assert refusal("c", inputs="tt").startswith("data.inputs: no column 'tt'; did you mean 't'? (choices: t, y)")
        datasets.Dataset.from_dict({"t": ["a"], "y": [-1]}, features=kinds).save_to_disk("d")
        assert refusal("d", inputs="t").startswith("d: row 0 (from 0): 'y': found the class -1")

    def test_texts_are_classes_and_tokens(self) -> None:
        table(t=["a", "b"] * 3, k=["on", "off"] * 3).save_to_disk("t")
        data = load("t", inputs="t", target="k", tokenizer=TokenizerSection())
        assert items(data.train) == [([97], 1)] * 3 + [([98], 0)] * 3

    def test_a_row_without_a_target_is_damaged(self) -> None:
        datasets.Dataset.from_dict({"x": [1.0, 2.0], "y": [0, None]}).save_to_disk("n")
        train = load("n").train
        assert train.damage == "n: row 1 (from 0): 'y': found null, expected a value"

    def test_images_and_sounds_are_decoded_by_ddl(self) -> None:
        image, sound = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (4, 2), (0, 255, 0)).save(image, "PNG")
        soundfile.write(sound, np.array([0.5, -0.5]), 8000, format="WAV", subtype="FLOAT")
        stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        kinds = datasets.Features({"i": stored, "s": stored, "y": datasets.Value("float32")})
        rows = {
            "i": [{"bytes": image.getvalue(), "path": None}],
            "s": [{"bytes": sound.getvalue(), "path": None}],
            "y": [0.5],
        }
        whole = datasets.Dataset.from_dict(rows, features=kinds)
        whole.cast_column("i", datasets.Image()).cast_column("s", datasets.Audio()).save_to_disk("m")
        data = load("m", inputs="i")
        assert data.spec == DataSpec((3, 2, 4), 1, "regression")
        assert data.train.item(0)[0][:, 0, 0].tolist() == [0, 1, 0]
        assert load("m", inputs="s").train.item(0)[0].tolist() == [[0.5, -0.5]]


class TestStreams:
    def numbers(self, stream: Any, part: int = 0, parts: int = 1, epoch: int = 0) -> list[int]:
        raws = map(pickle.loads, map(pickle.dumps, stream.raw(part, parts, epoch)))
        return [int(stream.sample(raw)[0][0]) for raw in raws]

    def test_shards_or_samples_are_dealt_and_epochs_differ(self) -> None:
        for number in range(2):
            table(10 * number, 5).to_parquet(f"s{number}.parquet")
        stream = load("s*.parquet", streaming=True, classes=3, shuffle=0).train
        assert self.numbers(stream) == [*range(5), *range(10, 15)]
        assert [self.numbers(stream, part, 2) for part in range(2)] == [[*range(5)], [*range(10, 15)]]
        three = [self.numbers(stream, part, 3) for part in range(3)]
        assert three == [self.numbers(stream)[part::3] for part in range(3)]
        mixed = load("s*.parquet", streaming=True, classes=3, shuffle=4).train
        assert self.numbers(mixed, epoch=1) == self.numbers(mixed, epoch=1) != self.numbers(mixed, epoch=2)
        assert sorted(self.numbers(mixed)) == self.numbers(stream)

    def test_held_out_splits_have_positions_and_classes_are_asked_for(self, saved: str) -> None:
        data = load(saved, streaming=True, classes=3, test_split="test")
        assert data.spec == DataSpec((2,), 3, "classification")
        assert len(items(data.test)) == 3
        assert refusal(saved, streaming=True).startswith(
            "data.classes is missing, and saved: row 0 (from 0): 'y' is the"
        )
        with open("e.jsonl", "w") as file:
            json.dump({"x": [1.0], "y": "one"}, file)
        assert refusal("e.jsonl", streaming=True, classes=["two"]).startswith(
            "e.jsonl: row 0 (from 0): 'y': found 'one'"
        )
