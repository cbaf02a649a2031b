"""The source `webdataset`."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from hvd_train.config import plugins
from hvd_train.config.options import TokenizerSection
from hvd_train.data.base import Dataset, Stream
from hvd_train.data.records.shards import deal_shards, shuffled
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from tests.bodies import training
from tests.engines import threads


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shard(name: str, *files: tuple[str, Any]) -> str:
    """Write a tar file; values that are no bytes are written as JSON."""
    with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as archive:
        for path, value in files:
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return name


def numbered(name: str, first: int, count: int) -> str:
    """Write a shard of `count` samples: x is the number, the class is the number modulo 3."""
    samples = range(first, first + count)
    return shard(name, *(pair for n in samples for pair in ((f"d/{n:04}.json", [n, 0.5]), (f"d/{n:04}.cls", n % 3))))


def load(shards: Any, **options: Any) -> Dataset:
    options = {"inputs": "json", "target": "cls", "classes": 3, "shuffle": 0, **options}
    return plugins.create("hvd_train.data.sources", "webdataset", shards=shards, **options)


def keys(stream: Any, part: int = 0, parts: int = 1, epoch: int = 0) -> list[int]:
    """The numbers of the samples of a part, each decoded from a raw sample that was pickled."""
    raws = map(pickle.loads, map(pickle.dumps, stream.raw(part, parts, epoch)))
    return [int(stream.sample(raw)[0][0]) for raw in raws]


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    return str(caught.value)


def damaged(stream: Stream) -> tuple[list[int], list[str]]:
    """The numbers of the good samples, and the messages for the others."""
    good, messages = [], []
    for raw in stream.raw(0, 1, 0):
        try:
            good.append(int(stream.sample(raw)[0][0]))
        except UserError as error:
            messages.append(str(error))
    return good, messages


@pytest.fixture
def four() -> str:
    for number in range(4):
        numbered(f"s-{number:02}.tar" + ".gz" * (number == 2), 10 * number, 5)
    return "s-{00..03}.tar*"


class TestOrder:
    def test_every_part_has_whole_shards_and_all_parts_have_all_samples_once(self, four: str) -> None:
        stream = load(four).train
        parts = [keys(stream, part, 3) for part in range(3)]
        assert sorted(chain.from_iterable(parts)) == sorted(10 * s + i for s in range(4) for i in range(5))
        assert [sorted({n // 10 for n in part}) for part in parts] == [sorted({n // 10 for n in p[::5]}) for p in parts]
        assert sorted(map(len, parts)) == [5, 5, 10]

    def test_the_order_depends_on_epoch_and_seed_only(self, four: str) -> None:
        stream = load(four, shuffle=7).train
        assert keys(stream, epoch=1) == keys(stream, epoch=1)
        orders = [keys(stream), keys(stream, epoch=1), keys(load(four, shuffle=7, seed=1).train)]
        assert len(set(map(tuple, orders))) == 3
        assert len({tuple(sorted(order)) for order in orders}) == 1

    def test_shards_have_another_order_in_each_epoch(self, four: str) -> None:
        stream = load(four).train
        assert len({tuple(keys(stream, epoch=epoch)) for epoch in range(5)}) > 1

    def test_a_buffer_draws_among_so_many_samples(self) -> None:
        order = list(shuffled(range(100), 10, np.random.default_rng(0)))
        assert sorted(order) == list(range(100))
        assert order != list(range(100))
        assert all(n <= at + 10 for at, n in enumerate(order))

    def test_more_parts_than_shards_are_refused_before_anything_is_read(self, four: str) -> None:
        with pytest.raises(
            UserError, match=r"data.shards: found 4 for 5 ranks, expected at least one shard for each rank; start"
        ):
            load(four).train.raw(4, 5, 0)
        dealt = (deal_shards(4, part, 4, np.random.default_rng(0)) for part in range(4))
        assert sorted(chain.from_iterable(dealt)) == [0, 1, 2, 3]

    def test_a_plain_shard_is_not_read_for_samples_that_are_skipped(self) -> None:
        shard("big.tar", *((f"{n}.bin", bytes(2**20)) for n in range(8)))
        raws = list(load("big.tar", inputs="bin", target=None).train.raw(0, 1, 0))
        assert len(pickle.dumps(raws)) < 2000


class TestContents:
    def test_files_are_decoded_by_extension(self) -> None:
        image, sound, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
        Image.new("RGB", (3, 2), (255, 0, 51)).save(image, "PNG")
        soundfile.write(sound, np.array([[0.5, -0.5], [0.25, 0.0]]), 8000, format="WAV", subtype="FLOAT")
        np.save(array, np.arange(3, dtype=np.uint8))
        files = {
            "png": image.getvalue(), "wav": sound.getvalue(), "NPY": array.getvalue(), "txt": "hé".encode(), "bin": b"\x07",
            "meta.json": {"a": {"b": 1.5}}, "cls": b"2\n",
        }  # fmt: skip
        shard("all.tar", *((f"k.{extension}", content) for extension, content in files.items()))
        names = {"p": "jpg;png", "w": "wav", "n": "npy", "t": "txt", "b": "bin", "j": "meta.json.a.b"}
        stream = load("all.tar", inputs=names).train
        sample = stream.sample(next(stream.raw(0, 1, 0)))
        assert sample["p"].shape == (3, 2, 3)
        assert sample["p"][:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
        assert sample["w"].tolist() == [[0.5, 0.25], [-0.5, 0.0]]
        assert (sample["n"].tolist(), sample["t"], sample["b"].tolist()) == ([0, 1, 2], "hé", [7])
        assert (sample["j"].item(), sample["labels"].item()) == (1.5, 2)

    def test_sounds_are_resampled_and_a_truncated_one_is_damage(self) -> None:
        content = io.BytesIO()
        soundfile.write(content, np.zeros(80), 8000, format="WAV", subtype="FLOAT")
        shard("w.tar", ("1.wav", content.getvalue()), ("2.wav", content.getvalue()[:-9]))
        stream = load("w.tar", inputs="wav", target=None, audio_rate=16000).train
        whole, cut = stream.raw(0, 1, 0)
        assert stream.sample(whole).shape == (1, 160)
        with pytest.raises(UserError, match=r"w.tar: sample '2': 'wav': has \d+ of \d+ bytes, so it is cut off"):
            stream.sample(cut)

    def test_the_description_comes_from_the_first_sample(self, four: str) -> None:
        assert load(four).spec == DataSpec((2,), 3, "classification")
        shard("r.tar", ("1.json", {"x": [1, 2, 3], "y": 0.5}))
        regression = load("r.tar", inputs="json.x", target="json.y", classes=None)
        assert regression.spec == DataSpec((3,), 1, "regression")
        assert [t.tolist() for t in regression.train.sample(next(regression.train.raw(0, 1, 0)))] == [[1, 2, 3], [0.5]]
        shard("t.tar", ("1.txt", b"abc"))
        text = load("t.tar", inputs="txt", target=None, classes=None, tokenizer=TokenizerSection(), length=9)
        assert text.spec == DataSpec((9,), 256, "language")

    def test_names_of_classes_number_texts(self) -> None:
        shard("n.tar", ("1.json", 1), ("1.txt", b"dog"), ("2.json", 2), ("2.txt", b"cow"))
        data = load("n.tar", target="txt", classes=["cat", "dog"])
        assert data.preprocessing == {"target": {"name": "txt", "classes": ["cat", "dog"]}}
        assert damaged(data.train) == (
            [1],
            ["n.tar: sample '2': 'txt': found 'cow', expected one of the classes (choices: cat, dog)"],
        )

    def test_held_out_shards_are_items(self, four: str) -> None:
        data = load("s-00.tar", test_shards={"a": "s-01.tar", "b": "s-02.tar.gz"})
        items = pickle.loads(pickle.dumps(data.test))
        assert [int(items.item(i)[0][0]) for i in range(len(items))] == [10, 11, 12, 13, 14]
        assert [int(data.others["b"].item(i)[0][0]) for i in (4, 0)] == [24, 20]
        assert len(load("s-00.tar").test) == 0

    def test_integers_need_the_number_of_classes(self, four: str) -> None:
        assert refusal(four, classes=None).startswith(
            "data.classes is missing, and s-00.tar: sample 'd/0000': 'cls' is the"
        )
        assert damaged(load("s-00.tar", classes=2).train) == (
            [0, 1, 3, 4], ["s-00.tar: sample 'd/0002': 'cls': found 2, expected a class below 2"]
        )  # fmt: skip


class TestDamage:
    def good_then(self, *files: tuple[str, Any]) -> list[str]:
        """The messages of a shard with a good sample and `files`."""
        good, messages = damaged(load(shard("g.tar", ("7.json", 7), ("7.cls", 1), *files)).train)
        assert good == [7]
        return messages

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([("8.json", 8)], "sample '8': no key 'cls' (choices: json)"),
            ([("8.json", b"{"), ("8.cls", 1)], "sample '8': 'json', column 2: not JSON: Expecting property name"),
            ([("8.json", 8), ("8.cls", b"one")], "sample '8': 'cls': found 'one', expected an integer"),
            ([("8.json", 8), ("8.json", 8), ("8.cls", 1)], "sample '8' has two files of one extension"),
            ([("8.json", 8), ("8.cls", 1), ("7.cls", 1)], "sample '7' stands twice, or its files do not follow"),
        ],
    )
    def test_a_damaged_sample_is_named(self, files: Any, message: str) -> None:
        if "stands twice" in message:
            good, messages = damaged(load(shard("g.tar", ("7.json", 7), ("7.cls", 1), *files)).train)
            assert good == [7, 8]
        else:
            messages = self.good_then(*files)
        assert len(messages) == 1
        assert messages[0].startswith(f"g.tar: {message}")

    @pytest.mark.parametrize("extension", ["pyd", "pkl", "pth"])
    def test_nothing_is_unpickled(self, extension: str) -> None:
        shard("p.tar", (f"1.{extension}", pickle.dumps(1)))
        stream = load("p.tar", inputs=extension, target=None).train
        with pytest.raises(UserError, match=rf"p.tar: sample '1': '{extension}' is a pickle, which can run any code"):
            stream.sample(next(stream.raw(0, 1, 0)))

    def test_a_pickled_array_is_refused(self) -> None:
        content = io.BytesIO()
        np.save(content, np.array([{}], object), allow_pickle=True)
        stream = load(shard("p.tar", ("1.npy", content.getvalue())), inputs="npy", target=None).train
        with pytest.raises(UserError, match=r"p.tar: sample '1': 'npy' is not an array of numpy"):
            stream.sample(next(stream.raw(0, 1, 0)))

    def test_an_unknown_extension_is_refused_with_the_known_ones(self) -> None:
        stream = load(shard("u.tar", ("1.mp4", b"")), inputs="mp4", target=None).train
        with pytest.raises(UserError, match="'mp4' has an unknown extension, expected one of json, npy, bin, "):
            stream.sample(next(stream.raw(0, 1, 0)))

    def test_a_truncated_shard_keeps_the_samples_before(self) -> None:
        for name in ("whole.tar", "whole.tar.gz"):
            numbered(name, 0, 9)
            content = Path(name).read_bytes()
            Path(f"cut.{name}").write_bytes(content[: 512 * 9 if name.endswith("tar") else -40])
            good, messages = damaged(load(f"cut.{name}").train)
            assert good == list(range(len(good)))
            assert len(good) < 9
            assert len(messages) == 1
            assert messages[0].startswith(f"cut.{name}: not a whole tar file after '")

    def test_an_empty_shard_is_known_at_the_start(self, four: str) -> None:
        shard("none.tar")
        Path("zero.tar").touch()
        Path("text.tar").write_text("no tar at all " * 99)
        stream = load(["s-00.tar", "none.tar", "zero.tar", "text.tar"]).train
        assert stream.damage == "none.tar: no samples, expected files such as 0001.jpg and 0001.cls"
        good, messages = damaged(stream)
        assert good == [0, 1, 2, 3, 4]
        assert sorted(m.split(":")[0] for m in messages) == ["none.tar", "text.tar", "zero.tar"]
        assert refusal("none.tar") == stream.damage

    def test_hidden_files_and_folders_are_no_samples(self) -> None:
        shard("h.tar", ("._7.json", b"\0"), ("7.json", 7), ("7.cls", 1), ("README", b""))
        assert damaged(load("h.tar").train) == ([7], [])

    def test_missing_shards_are_refused(self) -> None:
        numbered("m-0.tar", 0, 1)
        assert refusal("m-{0..1}.tar").startswith("data.shards: no file 'm-1.tar'; did you mean 'm-0.tar'?")


def test_images_are_scaled_to_one_size() -> None:
    images = []
    for width, height in ((8, 6), (5, 9)):
        content = io.BytesIO()
        Image.new("L", (width, height), 255).save(content, "JPEG")
        images.append(content.getvalue())
    shard("i.tar", *((f"{n}.jpg", image) for n, image in enumerate(images)))
    stream = load("i.tar", inputs="jpg", target=None, image_size=[4, 4], image_mode="grey").train
    samples = torch.stack([stream.sample(raw) for raw in stream.raw(0, 1, 0)])
    assert torch.equal(samples, torch.ones(2, 1, 4, 4))


def test_ranks_train_on_their_shards_and_too_many_ranks_are_refused(four: str) -> None:
    data = {"name": "webdataset", "shards": four, "inputs": "json", "target": "cls", "classes": 3, "batch_size": 2}
    config = training.configuration(
        model={"target": None, "name": "mlp", "hidden": [4]},
        data={**data, "partition": None},
        train={"epochs": None, "steps": 7},
    )

    def trained(comm: Any) -> Any:
        job = training.trainer(comm, config)
        job.run()
        return [parameter.tolist() for parameter in job.model.parameters()]

    one, other = threads.run(2, trained)
    assert one == other
    with pytest.raises(UserError, match=r"data.shards: found 4 for 5 ranks"):
        threads.run(5, lambda comm: training.trainer(comm, config))
