"""The survey of a data set that `ddl data show` prints and draws."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import default_collate

from cli.data import report, shares
from cli.data.picture import picture
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset
from hvd_train.data.samples import StreamSplit
from hvd_train.data.sources import csv
from hvd_train.data.spec import DataSpec
from hvd_train.data.survey import __main__ as program
from hvd_train.data.survey import rates
from hvd_train.data.survey.columns import columns
from hvd_train.data.survey.drawings import drawings, excerpts, kind_of
from hvd_train.data.survey.samples import fields, read
from hvd_train.data.survey.statistics import histogram, statistics
from hvd_train.data.tokenizing.saved import decoder, described


@dataclass
class Nested:
    """Samples of dicts: an image, tokens of unequal length, a text and a class."""

    samples: int = 20

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.samples) % 3

    def __len__(self) -> int:
        return self.samples

    def batch(self, indices: Tensor) -> dict[str, Any]:
        (i,) = indices.tolist() if len(indices) == 1 else (int(indices[0]),)
        count = len(indices)
        return {
            "seen": {"image": torch.full((count, 3, 200, 100), i / 20), "depth": torch.zeros(count, 5, 6)},
            "tokens": torch.ones(count, 2 + i, dtype=torch.int64),
            "text": [f"sample {i}"] * count,
            "label": torch.full((count,), i % 3),
        }


class Endless:
    """A stream of (number, class) without an end."""

    name = "endless"

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[int]:
        number = part
        while True:
            yield number
            number += parts

    def sample(self, raw: int) -> tuple[Tensor, int]:
        return torch.tensor([float(raw)]), raw % 2


def surveyed(monkeypatch: pytest.MonkeyPatch, data: Dataset, workers: tuple[int, ...] = ()) -> dict[str, Any]:
    monkeypatch.setattr(program, "load", lambda section, seed: data)
    monkeypatch.setattr(rates, "SECONDS", 0.01)
    config = Config.model_validate({"model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 4}})
    return program.survey(config, 2, workers)


def test_nested_samples_have_named_fields() -> None:
    assert fields((1, 2, 3)) == {"input 0": 1, "input 1": 2, "target": 3}
    assert fields({"a": {"b": 1, "c": [2, 3]}}) == {"a.b": 1, "a.c.0": 2, "a.c.1": 3}
    assert fields("text") == {"input": "text"}


def test_a_survey_of_nested_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(Nested(), Nested(4), DataSpec((), 3, "other"), others={"night": Nested(2)})
    found = surveyed(monkeypatch, data)
    assert found["samples"] == {"train": 20, "test": 4, "night": 2}
    assert found["read"] == 20
    by_name = {field["name"]: field for field in found["fields"]}
    assert list(by_name) == ["seen.image", "seen.depth", "tokens", "text", "label"]
    assert by_name["seen.image"]["shape"] == [3, 200, 100]
    assert by_name["seen.image"]["high"] == pytest.approx(0.95)
    assert by_name["tokens"]["shape"] == [None]
    assert sum(by_name["tokens"]["lengths"]["counts"]) == 20
    assert by_name["tokens"]["lengths"]["edges"] == [n - 0.5 for n in range(2, 23)]
    assert [(d["name"], d["kind"], len(d["values"])) for d in found["drawings"]] == [
        ("seen.image", "image", 16), ("seen.depth", "map", 16),
    ]  # fmt: skip
    assert np.array(found["drawings"][0]["values"][0]).shape == (96, 96, 3)
    assert found["excerpts"] == {"text": [f"sample {i}" for i in _positions(found, 3)]}
    assert found["titles"] == [str(i % 3) for i in _positions(found, 16)]
    assert sum(n for worker in found["shares"] for n in worker.values()) == 20


def _positions(found: dict[str, Any], count: int) -> list[int]:
    return torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()[:count]


def test_a_survey_of_a_stream_has_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    found = surveyed(
        monkeypatch, Dataset(StreamSplit(Endless(), default_collate), Nested(0), DataSpec((1,), 2, "classification"))
    )
    assert found["samples"] == {"train": None, "test": 0}
    assert found["shares"] is None
    assert found["read"] == 1000
    assert [c["name"] for c in found["columns"]] == ["input"]
    assert found["columns"][0]["high"] == 999
    assert "train: a stream" in report.text("title", found, 140)


def test_reading_ends_at_the_limit_of_bytes() -> None:
    class Large(Nested):
        def batch(self, indices: Tensor) -> Tensor:
            return torch.zeros(1, 2**22)

    found, size = read(Large(100), seed=0)
    assert (len(found), size) == (5, 5 * 2**24)


def test_statistics_are_exact() -> None:
    found = statistics([torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([5.0, -1.0, float("inf")])])
    assert (found["type"], found["shape"], found["low"], found["high"]) == ("float32", [3], -1.0, 5.0)
    assert (found["mean"], found["missing"]) == (2.0, pytest.approx(1 / 3))
    assert statistics([3, 4])["type"] == "int"
    assert statistics([torch.tensor([float("nan")])])["missing"] == 1
    assert statistics([torch.ones(2, dtype=torch.bfloat16)])["mean"] == 1
    assert statistics([torch.ones(2, 3), torch.ones(2, 7)])["shape"] == [2, None]
    assert "low" not in statistics([torch.ones(1, dtype=torch.complex64)])


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([1, 1, 3], [0.5, 1.5, 2.5, 3.5], [2, 0, 1]),
        ([0.25, 0.25], [-0.25, 0.75], [2]),
        ([0.0, 24.0, 48.0], [2.0 * n for n in range(25)], [1, *[0] * 11, 1, *[0] * 10, 1]),
    ],
)
def test_histograms(values: list[float], edges: list[float], counts: list[int]) -> None:
    assert histogram(np.array(values)) == {"edges": edges, "counts": counts}


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (torch.ones(3, 8, 8), "image"),
        (np.ones((8, 8, 3)), "image"),
        (torch.ones(1, 64, 90), "image"),
        (torch.ones(7, 8, 8), "map"),
        (torch.ones(8, 9), "map"),
        (torch.ones(2, 16_000), "curve"),
        (torch.ones(16_000), "curve"),
        (torch.ones(16_000, dtype=torch.int64), None),
        (torch.ones(5), None),
        (1.5, None),
        ("text", None),
    ],
    ids=str,
)
def test_what_is_drawn_follows_the_shape(leaf: Any, kind: str | None) -> None:
    assert kind_of(leaf) == kind


def test_pixels_are_scaled_to_black_and_white() -> None:
    ramp = torch.linspace(-2, 2, 64).reshape(1, 8, 8)
    (drawn,) = drawings([{"x": ramp}])
    pixels = np.array(drawn["values"][0])
    assert (pixels.min(), pixels.max()) == (0, 255)
    (drawn,) = drawings([{"x": torch.full((3, 4, 4), 51, dtype=torch.uint8)}])
    assert np.array(drawn["values"][0]).tolist() == [[[51] * 3] * 4] * 4
    (drawn,) = drawings([{"x": torch.arange(480.0)}])
    assert drawn["values"][0] == [[2.0 * n for n in range(240)], [2.0 * n + 1 for n in range(240)]]


def test_tokens_are_read_as_text() -> None:
    language = DataSpec((4,), 256, "language")
    decode = decoder(described({}, language))
    sample = {"input": torch.tensor([72, 105, 33, -100]), "target": torch.tensor([105, 33, 33, 33])}
    assert excerpts([sample], "target", decode) == {"input": ["Hi!"]}
    words = Tokenizer(WordLevel({"deep": 0, "sea": 1}))
    facts = {"tokenizer": {"name": "file", "vocabulary": 2, "json": words.to_str()}}
    decode = decoder(described(facts, language))
    assert decode is not None
    assert decode([1, 0, -100]) == "sea deep"
    assert decoder(described({}, DataSpec((4,), 50_257, "language"))) is None


def test_spectra_are_maps() -> None:
    assert [d["kind"] for d in drawings([{"x": torch.ones(1, 64, 90)}], spectra=True)] == ["map"]


@pytest.mark.parametrize("categorical", ["onehot", "code"])
def test_columns_of_a_table_have_their_missing_values(categorical: str, tmp_path: Path) -> None:
    rows = ["age,town,risk", "1,Oslo,a", ",Oslo,b", "3,Bergen,a", "5,,b"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    data = csv.create(
        path=str(tmp_path / "t.csv"), target="risk", categorical=categorical, missing="mean", test_fraction=0.0
    )
    samples, _ = read(data.train, seed=0)
    by_field = {name: [sample[name] for sample in samples] for name in samples[0]}
    age, town = columns(data, by_field, "target")
    assert (age["name"], age["missing"], age["low"], age["mean"], age["high"]) == ("age", 0.25, 1, 3, 5)
    assert town == {"name": "town", "categories": {"Oslo": 2, "Bergen": 1}, "missing": 0.25}


def test_rates_count_all_samples_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(Nested(), Nested(0), DataSpec((), 3, "other"))
    (found,) = surveyed(monkeypatch, data, workers=(0,))["rates"]
    assert found["workers"] == 0
    assert found["bytes_per_second"] > found["samples_per_second"] > 0


def test_the_picture_has_a_part_for_everything_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = surveyed(monkeypatch, Dataset(Nested(), Nested(0), DataSpec((), 3, "other")), workers=(0,))
    drawn = picture("$title$", found)
    titles = [part.get_suptitle() or part.axes[0].get_title() for part in drawn.subfigs]
    assert titles == [
        "Samples and classes of each worker in the first epoch",
        "seen.image of samples at random positions",
        "seen.depth of samples at random positions",
        "Lengths, of 20 samples",
        "Delivered by the source on this machine",
    ]
    file = io.BytesIO()
    drawn.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    shown = report.text("title", found, 140)
    assert f"  {found['excerpts']['text'][0]}\n" in shown
    assert "3 x 200 x 100" in shown
    assert '"drawings"' not in report.json(found)


@pytest.mark.parametrize(("workers", "kinds"), [(1, 0), (2, 2), (24, 10), (25, 11), (30, 40)])
def test_bars_have_the_heights_of_the_histograms(workers: int, kinds: int) -> None:
    histograms = [{c: 1 + (c + w) % 3 for c in range(kinds)} or {shares.NO_CLASS: 5 + w} for w in range(workers)]
    figure = Figure()
    shares.draw(figure, histograms, None)
    (axes, *key) = figure.axes
    (bars,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    heights = dict.fromkeys(range(workers), 0.0)
    for path in bars.get_paths():
        low, high = path.get_extents().intervaly
        worker = round(path.get_extents().intervalx.mean())
        assert low == heights[worker]
        heights[worker] = high
    assert heights == {w: sum(h.values()) for w, h in enumerate(histograms)}
    assert len({tuple(colour) for colour in bars.get_facecolors()}) == max(kinds, 1)  # type: ignore[attr-defined]
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > workers - 1
    assert (axes.get_legend() is not None) == (1 <= kinds <= 10)
    assert bool(key) == (kinds > 10)
