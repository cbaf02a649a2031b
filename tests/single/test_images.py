"""The source `images`: what a file becomes, which files count, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image, ImageOps

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.base import Dataset
from hvd_train.data.load import load
from hvd_train.data.media.image import ImageDecoder, drafted, fit
from hvd_train.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 4, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 4), np.uint16)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(path: str = "data", **options: Any) -> Dataset:
    return plugins.create("hvd_train.data.sources", "images", path=path, **options)


def save(path: str, pixels: Any = RGB, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def two_classes() -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            save(f"data/{name}/{number}.png")


def decoded(path: str, mode: Any = "rgb", size: Any = None, resize: Any = "crop") -> np.ndarray:
    return ImageDecoder(mode, size, resize, [0.0], [1.0])(path).numpy()


def test_folders_are_classes_in_sorted_order_and_hidden_or_other_files_are_skipped():
    save("data/b/deep/er/1.PNG", GREY)
    save("data/a/1.bmp")
    for other in ("data/a/notes.txt", "data/.ipynb_checkpoints/x.png", "data/a/.hidden/x.png", "data/a/._1.png"):
        save("data/b/.x/y.png")
        Path(other).parent.mkdir(exist_ok=True)
        Path(other).write_text("no image")
    data = source(test_fraction=0.0)
    files = {data.train.listing.file(i): data.train.item(i) for i in range(len(data.train))}
    assert {file: int(y) for file, (_, y) in files.items()} == {"data/a/1.bmp": 0, "data/b/deep/er/1.PNG": 1}
    assert np.allclose(files["data/a/1.bmp"][0], RGB.transpose(2, 0, 1) / 255, atol=1e-7)
    assert np.allclose(files["data/b/deep/er/1.PNG"][0], np.stack([GREY / 255] * 3), atol=1e-7)
    assert data.spec.input_shape == (3, 6, 4)
    assert (data.spec.outputs, data.spec.task) == (2, "classification")
    assert data.preprocessing["target"] == {"name": "folder", "classes": ["a", "b"]}
    assert [w for w in data.warnings if "notes.txt" in w]
    assert sorted(data.train.labels.tolist()) == [0, 1]


def test_normalise_subtracts_the_mean_and_divides_by_the_standard_deviation():
    two_classes()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((RGB / 255 - mean) / std).transpose(2, 0, 1)
    for normalise in ("imagenet", {"mean": list(mean), "std": list(std)}):
        assert np.allclose(source(normalise=normalise).train.item(0)[0], expected, atol=1e-6)
    assert np.allclose(source(normalise="half").train.item(0)[0], RGB.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


LUMA = np.asarray(Image.fromarray(RGB).convert("L"))
ALPHA = np.repeat(np.array([0, 255], np.uint8), 12).reshape(6, 4)
MODES = {
    "grey as rgb": (GREY, "x.png", "rgb", np.stack([GREY / 255] * 3)),
    "grey": (GREY, "x.pgm", "grey", GREY[None] / 255),
    "rgb as grey": (RGB, "x.png", "grey", LUMA[None] / 255),
    "16-bit PNG": (DEEP, "x.png", "grey", DEEP[None] / 65535),
    "16-bit PNG as rgb": (DEEP, "x.png", "rgb", np.stack([DEEP / 65535] * 3)),
    "16-bit TIFF": (DEEP, "x.tiff", "grey", DEEP[None] / 65535),
    "16-bit TIFF, most significant byte first": (DEEP.astype(">u2"), "x.tiff", "grey", DEEP[None] / 65535),
    "16-bit PGM": (DEEP, "x.pgm", "grey", DEEP[None] / 65535),
    "float TIFF": ((DEEP / 7).astype(np.float32), "x.tiff", "grey", DEEP[None] / 7),
    "palette": (palette(), "x.png", "rgb", np.asarray(palette().convert("RGB")).transpose(2, 0, 1) / 255),
    "palette with transparency": (palette(), "x.png", "grey", None),
    "two colours": (GREY > 99, "x.png", "grey", (GREY > 99)[None] * 1.0),
    "alpha": (np.dstack([RGB, ALPHA]), "x.webp", "rgb", None),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), "x.tiff", "rgb", RGB.transpose(2, 0, 1) / 255),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_each_kind_of_pixels_is_converted_by_its_rule(name: str):
    pixels, file, mode, expected = MODES[name]
    if name == "alpha":
        save(file, pixels, lossless=True)
        expected = np.where(ALPHA, RGB.transpose(2, 0, 1), 255) / 255
    elif name == "palette with transparency":
        clear = pixels.getpixel((0, 0))
        save(file, pixels, transparency=clear)
        expected = (
            np.where(np.asarray(pixels) == clear, 255, np.asarray(pixels.convert("RGB").convert("L")))[None] / 255
        )
    else:
        save(file, pixels)
    assert np.allclose(decoded(file, mode), expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(9))
def test_an_image_with_an_exif_orientation_is_upright(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save("x.jpg", np.kron(RGB, np.ones((16, 16, 1), np.uint8)), exif=exif)
    upright = ImageOps.exif_transpose(Image.open("x.jpg"))
    assert np.allclose(decoded("x.jpg"), np.asarray(upright).transpose(2, 0, 1) / 255, atol=1e-6)
    small = fit(upright, (24, 16) if orientation < 5 else (16, 24), "stretch")
    size = small.size[::-1]
    assert np.abs(decoded("x.jpg", size=size) * 255 - np.asarray(small).transpose(2, 0, 1)).mean() < 3, "with draft"


def test_crop_pad_and_stretch_give_the_size_with_the_expected_part_of_the_image():
    image = Image.fromarray(RNG.integers(0, 256, (40, 80, 3), np.uint8))
    bilinear = Image.Resampling.BILINEAR
    middle = image.resize((20, 10), bilinear).crop((5, 0, 15, 10))
    assert np.array_equal(fit(image, (10, 10), "crop"), middle)
    assert np.array_equal(fit(image, (10, 10), "stretch"), image.resize((10, 10), bilinear))
    padded = np.asarray(fit(image, (12, 12), "pad"))
    assert not padded[:3].any()
    assert not padded[-3:].any()
    assert np.array_equal(padded[3:9], image.resize((12, 6), bilinear))
    assert fit(image, (10, 10), "pad").size == (10, 10)
    assert fit(image, (40, 80), "crop") is image


def test_a_jpeg_is_decoded_no_larger_than_needed():
    """A half, quarter or eighth of its size, and never less than twice the final one."""
    assert drafted((400, 800), (50, 50), "crop") == (100, 200)
    assert drafted((400, 800), (50, 50), "pad") == (50, 100)
    assert drafted((400, 800), (50, 60), "stretch") == (100, 120)
    pixels = np.kron(RNG.integers(0, 256, (10, 20, 3), np.uint8), np.ones((40, 40, 1), np.uint8))
    save("x.jpg", pixels)
    whole = np.asarray(fit(Image.open("x.jpg").copy(), (50, 50), "crop")).transpose(2, 0, 1) / 255
    assert np.abs(decoded("x.jpg", size=(50, 50)) - whole).mean() < 0.02
    decoder = ImageDecoder("grey", (50, 50), "crop", [0.0], [1.0])
    with Image.open("x.jpg") as image:
        decoder._draft(image, sideways=False)
        assert (image.size, image.mode) == ((200, 100), "L")
    for sideways, size in ((True, (400, 200)), (False, (800, 400))):
        with Image.open("x.jpg") as image:
            ImageDecoder("rgb", (200, 25), "stretch", [0.0], [1.0])._draft(image, sideways=sideways)
            assert image.size == size


def test_a_table_has_paths_and_labels_of_any_format():
    two_classes()
    rows = [("data/cat/0.png", "x"), ("data/dog/1.png", "y"), ("data/dog/2.png", "x")]
    Path("t.csv").write_text("file;kind\n" + "".join(f"{p};{k}\n" for p, k in rows))
    Path("t.jsonl").write_text("".join(f'{{"file": "{p}", "kind": "{k}"}}\n' for p, k in rows))
    columns = {"file": [p for p, _ in rows], "kind": [k for _, k in rows]}
    pyarrow.parquet.write_table(pa.table(columns), "t.parquet")
    for table in ("t.csv", "t.jsonl", "t.parquet"):
        data = source(table, path_column="file", label_column="kind", delimiter=";", test_fraction=0.0)
        items = {data.train.listing.file(i): int(data.train.item(i)[1]) for i in range(3)}
        assert items == {os.path.join(".", p): "xy".index(k) for p, k in rows}
        assert data.preprocessing["target"] == {"name": "kind", "classes": ["x", "y"]}
        pickle.dumps(data.train)


def test_float_labels_of_a_table_make_a_regression_and_root_is_where_paths_begin():
    two_classes()
    Path("t.csv").write_text("path,label\ncat/0.png,0.5\ndog/1.png,2.5\ndog/2.png,1\n")
    data = source("t.csv", root="data", test_fraction=0.0)
    assert (data.spec.task, data.spec.outputs) == ("regression", 1)
    assert sorted(data.train.item(i)[1].tolist() for i in range(3)) == [[0.5], [1.0], [2.5]]
    assert data.train.labels.tolist() == [-1] * 3


def test_held_out_samples_are_a_random_fraction_or_further_folders_in_the_classes_of_training():
    two_classes()
    save("more/dog/1.png")
    data = source(test_fraction=0.25, seed=3)
    files = [{split.listing.file(i) for i in range(len(split))} for split in (data.train, data.test)]
    assert (len(files[0]), len(files[1]), len(files[0] | files[1])) == (6, 2, 8)
    data = source(test_path={"main": "data", "more": "more"})
    assert (len(data.train), len(data.test), list(data.others)) == (8, 8, ["more"])
    assert int(data.others["more"].item(0)[1]) == 1, "'dog' is the second class of the training data"
    copy = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(copy.item(0)[0], data.train.item(0)[0])


def broken(cut: int) -> None:
    save("whole.jpg", np.kron(RGB, np.ones((9, 9, 1), np.uint8)))
    for name in ("a", "b"):
        Path(f"data/{name}").mkdir(parents=True)
        Path(f"data/{name}/1.jpg").write_bytes(Path("whole.jpg").read_bytes()[:cut])


def table(text: str) -> None:
    save("x.png")
    Path("t.csv").write_text(text)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no folder": (two_classes, {"path": "dato"}, "data.path: no folder or table 'dato'; did you mean 'data'?"),
    "a file": (lambda: save("x.png"), {"path": "x.png"}, "data.path: 'x.png', expected a folder, or a table"),
    "empty folder": (lambda: os.mkdir("data"), {}, "data: is empty, expected a folder for each class with .jpg"),
    "empty classes": (lambda: os.makedirs("data/a"), {}, "data: has 1 folders without files"),
    "one class": (lambda: save("data/a/1.png"), {}, "data: found one folder of a class, 'a', expected at least two"),
    "one class empty": (
        lambda: (two_classes(), os.mkdir("data/empty")), {}, "data: the folder 'empty' has no files that count",
    ),
    "images beside": (lambda: save("data/1.png"), {}, "data: files such as '1.png' are in no folder of a class"),
    "parts": (
        lambda: (save("data/train/a/1.png"), save("data/val/a/1.png")), {}, "data: its folders are train, val, expected one",
    ),
    "regression of folders": (two_classes, {"task": "regression"}, "a regression needs a table"),
    "no test folder": (two_classes, {"test_path": {"x": "no"}}, "data.test_path.x: no folder or table 'no'"),
    "unknown test class": (
        lambda: (two_classes(), save("test/cats/1.png"), save("test/dog/1.png")),
        {"test_path": "test"}, "test: no training sample is of class 'cats'; did you mean 'cat'?",
    ),
    "none left": (two_classes, {"test_fraction": 0.99}, "data: test_fraction 0.99 leaves none of 8 samples"),
    "truncated": (lambda: broken(700), {"test_fraction": 0.0}, "1.jpg: not a readable image: image file is truncated"),
    "zero bytes": (lambda: broken(0), {"test_fraction": 0.0}, "1.jpg: not a readable image: cannot identify"),
    "size": (two_classes, {"size": [3]}, "data.size: [3], expected one side in pixels, or [height, width]"),
    "mean": (two_classes, {"normalise": {"men": [0.5]}}, "data.normalise: unknown key 'men'; did you mean 'mean'?"),
    "means": (two_classes, {"normalise": {"mean": [0.5] * 2}}, "mean is [0.5, 0.5], expected one finite number, or 3"),
    "grey imagenet": (two_classes, {"normalise": "imagenet", "mode": "grey"}, "or 1 for mode: grey"),
    "zero std": (two_classes, {"normalise": {"std": [0.0]}}, "std is [0.0], expected positive numbers"),
    "wrong column": (
        lambda: table("paths,label\nx.png,a\n"), {"path": "t.csv"},
        "t.csv: no column 'path'; did you mean 'paths'? (choices: label, paths); data.path_column names it",
    ),
    "no label": (
        lambda: table("path,label\nx.png,a\n\nx.png,\n"), {"path": "t.csv"}, "t.csv: column 'label', line 4: no value",
    ),
    "no rows": (lambda: table("path,label\n"), {"path": "t.csv"}, "t.csv: 0 rows"),
    "one label": (lambda: table("path,label\nx.png,a\n"), {"path": "t.csv"}, "t.csv: found one class, 'a'"),
    "number as a path": (lambda: table("path,label\n1,a\n2,b\n"), {"path": "t.csv"}, "line 2: 1, expected the path of a file"),
    "missing file": (
        lambda: table("path,label\ny.png,a\nz.png,b\n"), {"path": "t.csv", "test_fraction": 0.0},
        ".png: not a readable image: No such file or directory (t.csv, line ",
    ),
    "no root": (lambda: table("path,label\nx.png,a\n"), {"path": "t.csv", "root": "no"}, "data.root: no folder 'no'"),
    "no object": (
        lambda: Path("t.jsonl").write_text("[1]\n"), {"path": "t.jsonl"}, "t.jsonl: line 1: found '[1]', expected an object",
    ),
    "texts and numbers": (
        lambda: Path("t.jsonl").write_text('{"path": "x", "label": 1}\n{"path": "x", "label": "a"}\n'), {"path": "t.jsonl"},
        "t.jsonl: not a table of one JSON object a line",
    ),
    "no JSON": (
        lambda: Path("t.jsonl").write_text('{"path": "x", "label": 1}\n{"path" 2}\n'), {"path": "t.jsonl"},
        "t.jsonl: line 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence(name: str):
    prepare, options, message = REFUSED[name]
    prepare()
    with pytest.raises(UserError) as refused:
        source(**options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named_with_its_line_in_the_table():
    Path("t.csv").write_text("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(2, 7)))
    save("2.png")
    train = source("t.csv", size=4, test_fraction=0.0).train
    messages = set()
    for i in range(5):
        try:
            train.item(i)
        except UserError as error:
            messages.add(str(error))
    expected = "{0}.png: not a readable image: No such file or directory (t.csv, line {0})"
    assert messages == {"./" + expected.format(i) for i in range(3, 7)}


def test_images_of_another_size_are_named_with_the_option_that_resizes():
    two_classes()
    save("data/dog/3.png", RGB[:, :3])
    data = load(read_section(DataSection, Document({"name": "images", "path": "data", "test_fraction": 0.0}, "test")))
    with pytest.raises(UserError, match=r"^data/.*png is .*, expected .* as data/.*png; data.size resizes all files$"):
        data.train.batch(torch.arange(8))


def test_a_damaged_file_is_named_when_it_is_read():
    save("32.tiff", np.full((6, 4), 70000, np.int32))
    with pytest.raises(UserError, match=r"^32.tiff: found the pixel 70000, expected integers of 8 or 16 bits$"):
        decoded("32.tiff")
    save("nan.tiff", np.full((6, 4), np.nan, np.float32))
    with pytest.raises(UserError, match=r"^nan.tiff: found a pixel that is not finite"):
        decoded("nan.tiff")
    two_classes()
    Path("data/dog/2.png").write_bytes(Path("data/dog/2.png").read_bytes()[:60])
    data = source(size=4, test_fraction=0.0)
    messages = []
    for i in range(8):
        try:
            data.train.item(i)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert messages[0].startswith("data/dog/2.png: not a readable image: ")
