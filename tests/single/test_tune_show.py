"""What a person sees of a search: tables, best.yaml, pictures, the page, and the live view."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from PIL import Image

from cli import main
from cli.arguments.configuration import load
from cli.search import records
from cli.search.records import Record
from cli.tune.objectives import Objective
from cli.tune.show import table
from cli.tune.show.best import best_yaml, dumped
from cli.tune.show.configurations import (
    Configuration,
    best,
    configurations,
    counts,
    covered,
    front,
    history,
    ranked,
    slot_use,
)
from cli.tune.show.importance import importances
from cli.tune.show.live import BLOCKS, Live, sparkline
from cli.tune.show.page import page
from cli.tune.show.pictures.draw import draw
from cli.tune.show.pictures.style import labels, range_of
from cli.tune.show.search import Absent, Search, read
from hvd_train.config import document
from hvd_train.errors import UserError
from hvd_train.text import strict_json

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

LOSS, ACCURACY = Objective("loss", "min"), Objective("accuracy", "max")
LR = {"optimizer.lr": FloatDistribution(1e-6, 10.0, log=True)}
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
MODEL = """\
model: {name: mlp, hidden: [16]}
data: {name: digits, batch_size: 64}
optimizer: {name: SGD, lr: 0.1}
train: {epochs: 2}
search: {trials: 7}
"""


def record(number: int, state: str = "complete", *objectives: float, **more: Any) -> Record:
    """Return a trial whose other fields are empty unless `more` has them."""
    empty = {"values": {}, "curve": {}, "folder": "", "continues": None, "reason": None, "figures": {}, "folds": {}}
    return Record(number=number, state=state, objectives=objectives, **{**empty, "spans": [], **more})


def study(folder: Path, *objectives: Objective, **attributes: Any) -> optuna.Study:
    """Return a new study as `ddl tune` makes it, in the journal of `folder`."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    modes = [f"{objective.mode}imize" for objective in objectives]
    made = optuna.create_study(study_name="ddl", storage=storage, directions=modes)
    named = [{"name": objective.name, "mode": objective.mode} for objective in objectives]
    basic = {"file": "model.yaml", "overrides": [], "np": 2, "space": {}, "objectives": named, "trials": 10}
    for name, value in {**basic, **attributes}.items():
        made.set_user_attr(name, value)
    return made


def add(
    to: optuna.Study,
    values: dict[str, Any],
    state: TrialState = COMPLETE,
    objectives: Sequence[float] = (),
    curve: Sequence[float] = (),
    spaces: dict[str, Any] = LR,
    **attributes: Any,
) -> None:
    """Add a trial with `values`, which are parameters too."""
    params = {name: value for name, value in values.items() if name in spaces}
    to.add_trial(
        create_trial(
            state=state,
            values=list(objectives) or None,
            params=params,
            distributions={name: spaces[name] for name in params},
            intermediate_values=dict(enumerate(curve, 1)),
            user_attrs={records.VALUES: values, **attributes},
        )
    )


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """Return the folder of a search with a trial in each state, one of them continued."""
    made = study(tmp_path, ACCURACY, file=str(tmp_path / "model.yaml"), overrides=["train.epochs=3"])
    (tmp_path / "model.yaml").write_text(MODEL)
    add(made, {"optimizer.lr": 0.5}, COMPLETE, [0.75], [0.5, 0.75], spans=[[0, 10, ["h1:0"]]], folder="trials/0000")
    add(made, {"optimizer.lr": 0.01}, PRUNED, [], [0.25], spans=[[0, 4, ["h1:1"]]], folder="trials/0001")
    add(made, {"optimizer.lr": 9.0}, FAIL, spans=[[4, 6, ["h1:1"]]], reason="the loss is nan\n", folder="trials/0002")
    add(made, {"optimizer.lr": 0.001}, FAIL, infeasible=True)
    add(
        made,
        {"optimizer.lr": 0.01},
        COMPLETE,
        [0.875],
        [],
        spans=[[6, 10, ["h1:1"]]],
        continues=1,
        folder="trials/0001",
    )
    add(made, {"optimizer.lr": 0.02}, RUNNING, [], [0.5], folder="trials/0005")
    return tmp_path


# Configurations


def test_a_trial_that_continues_another_is_the_same_configuration() -> None:
    slow, fast = {"lr": 0.1}, {"lr": 0.2}
    trials = [
        record(0, "pruned", values=slow, curve={1: 0.5, 2: 0.6}, spans=[(0, 2, ["a"])]),
        record(1, "complete", 0.9, values=fast, curve={1: 0.4}),
        record(2, "pruned", values=slow, curve={3: 0.7}, continues=0, spans=[(5, 6, ["a"])]),
        record(3, "complete", 0.8, values=slow, curve={4: 0.8}, continues=2, folder="trials/0000"),
        record(4, "running", values={"lr": 0.12}, continues=0),
    ]
    found = configurations(trials)
    assert [[trial.number for trial in c.trials] for c in found] == [[0, 2, 3], [1], [4]]
    assert found[0].number == 0
    assert found[0].state == "complete"
    assert found[0].curve == {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8}
    assert found[0].seconds == 3
    assert counts(found) == {"complete": 2, "running": 1}


def test_the_best_comes_first_and_then_what_is_not_complete() -> None:
    trials = [
        record(0, "failed", curve={1: 0.1}),
        record(1, "pruned", curve={1: 0.5, 2: math.nan}),
        record(2, "complete", 0.3),
        record(3, "complete", 0.2),
        record(4, "complete", 0.2),
        record(5, "waiting"),
        record(6, "running", curve={1: 0.05}),
    ]
    found = configurations(trials)
    assert [c.number for c in ranked(found, [LOSS])] == [3, 4, 2, 6, 0, 1, 5]
    assert [c.number for c in ranked(found, [ACCURACY])] == [2, 3, 4, 1, 0, 6, 5]
    assert [c.number for c in best(found, [LOSS])] == [3]
    assert history(found, LOSS) == [(2, 0.3), (3, 0.2)]
    assert history(found, ACCURACY) == [(2, 0.3)]
    assert best([], [LOSS]) == []


@settings(max_examples=40)
@given(st.data(), st.integers(2, 3))
def test_the_front_has_the_points_that_none_dominates(data: st.DataObject, count: int) -> None:
    points = data.draw(st.lists(st.tuples(*[st.integers(0, 4).map(float)] * count), max_size=12))
    modes = data.draw(st.tuples(*[st.sampled_from(["min", "max"])] * count))
    costs = [[v if mode == "min" else -v for v, mode in zip(p, modes, strict=True)] for p in points]
    expected = {
        i
        for i, cost in enumerate(costs)
        if not any(other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for other in costs)
    }
    found = front(points, [Objective("x", mode) for mode in modes])
    assert set(found) == expected
    assert [costs[i][0] for i in found] == sorted(costs[i][0] for i in found)


def test_slots_count_from_start_to_end_without_pauses_of_the_search() -> None:
    trials = [
        record(0, spans=[(0.0, 10.0, ["h1:0", "h1:1"]), (100.0, 104.0, ["h1:0"])]),
        record(1, spans=[(2.0, 8.0, ["h2:0"])]),
    ]
    use = slot_use(trials)
    assert use is not None
    assert (use.slots, use.seconds) == (3, 14.0)
    assert use.share == pytest.approx((14 + 10 + 6) / (3 * 14))
    assert slot_use([record(0)]) is None
    assert covered([(0, 4, []), (1, 2, []), (3, 6, []), (8, 9, [])]) == 7


# Tables


def test_the_text_is_progress_the_best_trials_and_the_best_values(searched: Path) -> None:
    assert table.text(read(searched), 3).splitlines() == [
        "model.yaml: 3 of 10 trials ended (2 complete, 1 running, 1 failed)",
        "best: accuracy 0.875 (trial 1)",
        "2 slots, 100% of their time used in 0:10",
        "",
        "trial  state     accuracy  optimizer.lr  evaluations  seconds  runs  reason",
        "1      complete  0.875     0.01          1            8.0      2",
        "0      complete  0.75      0.5           2            10.0     1",
        "5      running   (0.5)     0.02          1            0.0      0",
        "Values in parentheses are the newest ones of trials that are not complete.",
        "1 more trial is in trials.csv.",
        "",
        "trial 1:",
        "  optimizer.lr: 0.01",
    ]
    assert r"2      failed              9             0            2.0      1     the loss is nan\n" in table.text(
        read(searched), 20
    )


def test_csv_and_json_have_every_trial_of_the_study(searched: Path) -> None:
    found = read(searched)
    rows = list(csv.DictReader(io.StringIO(table.csv_text(found))))
    trials = [trial for trial in found.study.trials if records.INFEASIBLE not in trial.user_attrs]
    whole = json.loads(strict_json.dumps(table.as_json(found)))
    assert [int(row["trial"]) for row in rows] == [t["number"] for t in whole["trials"]] == [t.number for t in trials]
    for row, entry, trial in zip(rows, whole["trials"], trials, strict=True):
        assert row["state"].upper().startswith(trial.state.name)
        assert (
            float(row["optimizer.lr"]) == entry["values"]["optimizer.lr"] == trial.user_attrs["values"]["optimizer.lr"]
        )
        assert row["accuracy"] == ("" if trial.values is None else str(trial.values[0]))
        assert entry["objectives"] == (trial.values or [])
        assert {int(at): value for at, value in entry["curve"].items()} == trial.intermediate_values
        assert row["continues"] == str(trial.user_attrs.get("continues", ""))
    assert whole["best"] == [1]
    assert whole["counts"] == {"complete": 2, "running": 1, "failed": 1}
    assert whole["slots"] == {"slots": 2, "seconds": 10.0, "share": 1.0}


# best.yaml


def with_config(folder: Path, trial: str, *overrides: str, **data: Any) -> dict[str, Any]:
    """Write config.json of a trial as its ranks do, and return its content."""
    (folder / "model.yaml").write_text(MODEL)
    config = load(folder / "model.yaml", overrides).model_dump(exclude={"search", "slurm"})
    config["data"] |= data
    (folder / trial).mkdir(parents=True)
    (folder / trial / "config.json").write_text(strict_json.dumps(config))
    whole: dict[str, Any] = json.loads(strict_json.dumps(config))
    return whole


def resolved(text: str | None, folder: Path) -> dict[str, Any]:
    """Return what `ddl run` makes of the text of a file."""
    assert text is not None
    (folder / "best.yaml").write_text(text)
    config = load(folder / "best.yaml", []).model_dump(exclude={"search", "slurm"})
    whole: dict[str, Any] = json.loads(strict_json.dumps(config))
    return whole


def best_of(folder: Path) -> str | None:
    found = read(folder)
    return best_yaml(found, best(found.configurations, found.objectives)[0])


def test_best_yaml_is_the_users_file_with_the_values_of_the_trial(searched: Path) -> None:
    wanted = with_config(searched, "trials/0001", "train.epochs=3", "optimizer.lr=0.01")
    text = best_of(searched)
    assert text == (
        "# Trial 1 of model.yaml: accuracy 0.875\n"
        "#   ddl run --np 2 best.yaml\n"
        "model:\n  name: mlp\n  hidden: [16]\n"
        "data: {name: digits, batch_size: 64}\n"
        "optimizer: {name: SGD, lr: 0.01}\n"
        "train: {epochs: 3}\n"
    )
    assert resolved(text, searched) == wanted


def test_best_yaml_is_found_after_the_folder_has_moved(searched: Path) -> None:
    target = searched.with_name("moved")
    searched.rename(target)
    assert "optimizer: {name: SGD, lr: 0.01}" in (best_of(target) or "")


@pytest.mark.parametrize("change", ["gone", "other", "invalid"])
def test_best_yaml_comes_from_the_trial_if_the_file_no_longer_gives_it(searched: Path, change: str) -> None:
    wanted = with_config(searched, "trials/0001", "train.epochs=3", "optimizer.lr=0.01", "model.hidden=[8, 4]")
    file = searched / "model.yaml"
    {"gone": file.unlink, "other": lambda: None, "invalid": lambda: file.write_text("model: [")}[change]()
    text = best_of(searched)
    assert resolved(text, searched) == wanted
    assert len((text or "").splitlines()) < 15  # defaults are left out


def test_best_yaml_switches_to_another_member_of_a_family(tmp_path: Path) -> None:
    made = study(tmp_path, LOSS, file=str(tmp_path / "model.yaml"))
    values = {"optimizer.name": "AdamW", "optimizer.betas": [0.8, 0.9]}
    add(made, values, COMPLETE, [0.1], folder="trials/0000")
    wanted = with_config(tmp_path, "trials/0000", "optimizer.name=AdamW", "optimizer.betas=[0.8, 0.9]")
    (tmp_path / "model.yaml").write_text(MODEL.replace("lr: 0.1", "lr: 0.1, momentum: 0.9"))
    text = best_of(tmp_path)
    assert resolved(text, tmp_path) == wanted
    assert "optimizer:\n  name: AdamW\n  lr: 0.1\n  betas: [0.8, 0.9]\n" in (text or "")


def test_best_yaml_of_folds_trains_on_all_samples(tmp_path: Path) -> None:
    made = study(tmp_path, LOSS, file=str(tmp_path / "model.yaml"), overrides=["data.fold.folds=3"], folds=3)
    add(made, {"optimizer.lr": 0.3}, COMPLETE, [0.1], folder="trials/0000")
    wanted = with_config(tmp_path, "trials/0000/fold-0", "optimizer.lr=0.3", fold={"folds": 3, "index": 0})
    text = best_of(tmp_path)
    assert (text or "").endswith(MODEL[MODEL.index("data:") :].partition("search:")[0].replace("lr: 0.1", "lr: 0.3"))
    assert resolved(text, tmp_path) == {**wanted, "data": resolved(text, tmp_path)["data"]}


def test_there_is_no_best_yaml_if_nothing_gives_the_trial(searched: Path) -> None:
    (searched / "model.yaml").unlink()
    assert best_of(searched) is None


@pytest.mark.parametrize(
    "value",
    ["1e-3", "null", "yes", "12:30", "", " x", "a: b", "é\n", 1e-7, 3.0, None, True, [[1, 2], [3]], "#", "1_000"],
)
def test_values_are_the_same_after_writing_and_reading(value: Any) -> None:
    values = {"a": value, "b": {"c": [value]}, "d": [value, {"e": value}]}
    assert document.parse(dumped(values), "x").values == values


# Importance


def random_study(folder: Path, count: int, *objectives: Objective) -> Path:
    spaces = {
        **LR,
        "model.name": CategoricalDistribution(["mlp", "cnn"]),
        "model.dropout": FloatDistribution(0, 1),
    }
    made = study(folder, *objectives)
    for i in range(count):
        lr, name = 10 ** -((i * 0.37) % 4), ("mlp", "cnn")[i % 3 == 0]
        values: dict[str, Any] = {"optimizer.lr": lr, "model.name": name}
        if name == "mlp":
            values["model.dropout"] = (i * 0.61) % 1
        loss = (math.log10(lr) + 2) ** 2 + (name == "cnn") + 0.1
        add(made, values, COMPLETE, [loss, 5.0 - loss / 2][: len(objectives)], [loss + 1, loss], spaces)
    return folder


def test_importances_are_those_of_optuna(tmp_path: Path) -> None:
    found = read(random_study(tmp_path, 12, LOSS))
    expected = get_param_importances(
        found.study, evaluator=FanovaImportanceEvaluator(seed=0), params=["model.name", "optimizer.lr"]
    )
    assert importances(found).shares == [expected]
    assert list(importances(found).shares[0]) == ["optimizer.lr", "model.name"]
    assert importances(found).left_out == ["model.dropout"]


def test_importances_of_many_trials_are_those_of_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.tune.show.importance.MOST", 6)
    (tmp_path / "some").mkdir()
    study(tmp_path / "some", LOSS).add_trials(read(random_study(tmp_path, 12, LOSS)).study.trials[::2])
    found = importances(read(tmp_path))
    assert (found.trials, found.complete) == (6, 12)
    assert found.shares == importances(read(tmp_path / "some")).shares


def test_importances_need_complete_trials_that_vary(tmp_path: Path, searched: Path) -> None:
    with pytest.raises(Absent, match=r"^Importance needs 4 complete trials; there are 2\.$"):
        importances(read(searched))


def test_a_constant_objective_has_no_important_field(tmp_path: Path) -> None:
    made = study(tmp_path, LOSS)
    for lr in (0.1, 0.2, 0.3, 0.4):
        add(made, {"optimizer.lr": lr}, COMPLETE, [1.0])
    assert importances(read(tmp_path)).shares == [{"optimizer.lr": 0.0}]


# Pictures


def empty(folder: Path) -> None:
    study(folder, LOSS)


def only_failures(folder: Path) -> None:
    made = study(folder, LOSS)
    for i in range(3):
        curve = [math.nan] * i
        add(made, {"optimizer.lr": 0.1 + i}, FAIL, [], curve, reason="$out_of{memory", spans=[[i, i + 1, ["a:0"]]])


def one_trial(folder: Path) -> None:
    add(study(folder, LOSS), {"optimizer.lr": 0.1}, COMPLETE, [0.5], [0.5], spans=[[3, 3, ["a:0"]]])


def not_finite(folder: Path) -> None:
    made = study(folder, LOSS)
    for i in range(8):
        loss = math.inf if i == 4 else -0.1 if i == 5 else 1e9 if i == 6 else 0.2 + i
        add(made, {"optimizer.lr": 0.3**i}, COMPLETE, [loss], [math.nan, loss], spans=[[i, i + 2, ["a:0", "b:0"]]])


def wide(folder: Path) -> None:
    """Make 12 fields, long choices that begin alike, names like mathematics, and many trials."""
    alike = [f"{'a long text that many choices begin with ' * 2}{end}" for end in ("one", "two")]
    twins = [f"{'begin' * 9}{middle}{'end' * 9}" for middle in "xyz"]
    spaces = {
        **LR,
        **{f"model.section_{i}.a_long_name_{i}": FloatDistribution(0, 1) for i in range(8)},
        "data.$path_{x}^2": CategoricalDistribution(alike),
        "data.other": CategoricalDistribution(twins),
        "train.amp": CategoricalDistribution([True, False, None]),
    }
    made = study(folder, LOSS, trials=100)
    for i in range(20):
        values = {
            name: space.choices[i % len(space.choices)]
            if isinstance(space, CategoricalDistribution)
            else (i * 0.37) % 1 + 1e-3
            for name, space in spaces.items()
        }
        state = FAIL if i % 13 == 5 else PRUNED if i % 4 == 3 else COMPLETE
        curve = [3 / (step + 1) + (i % 7) for step in range(4)]
        add(
            made,
            values,
            state,
            curve[-1:] if state is COMPLETE else (),
            curve,
            spaces,
            spans=[[i, i + 3, [f"h{i % 9}:0"]]],
        )


def two_objectives(folder: Path) -> None:
    random_study(folder, 5, LOSS, ACCURACY)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (empty, ""),
        (only_failures, "history timeline"),
        (one_trial, "history curves slices parallel timeline"),
        (not_finite, "history curves importance slices parallel timeline"),
        (wide, "history curves slices parallel timeline"),
        (two_objectives, "history curves importance slices parallel pareto"),
    ],
)
def test_every_picture_has_something_to_see(
    make: Callable[[Path], None], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is wide:  # where fANOVA takes seconds

        def absent(search: Search) -> None:
            raise Absent("not here")

        monkeypatch.setattr("cli.tune.show.importance.importances", absent)
        monkeypatch.setattr("cli.tune.show.pictures.fields.importances", absent)
    make(tmp_path)
    pictures = draw(read(tmp_path))
    assert {p.name for p in pictures if p.png} == set(expected.split())
    for picture in pictures:
        if picture.png is None:
            assert re.fullmatch(r"[A-Z].*\.|not here", picture.note)
            continue
        image = Image.open(io.BytesIO(picture.png)).convert("L")
        left, top, right, bottom = image.point(lambda value: 255 * (value < 250)).getbbox() or (0, 0, 0, 0)
        assert right - left > 0.7 * image.width
        assert bottom - top > 0.7 * image.height
        saturation = np.asarray(Image.open(io.BytesIO(picture.png)).convert("HSV"))[:, :, 1]
        assert (saturation > 100).sum() > 20, picture.name


def test_an_axis_leaves_out_only_bad_outliers() -> None:
    losses = [0.1, 0.2, 0.3, 0.2, 0.3, 0.25, 0.2, 0.15, -50.0, 9.0]
    shown = range_of([*losses, math.nan, math.inf], LOSS)
    assert shown.low < -50
    assert 0.3 < shown.high < 9
    assert not shown.log
    assert shown.hides([9.0])
    assert shown.low < shown.clipped([-50.0])[0] < shown.clipped([9.0])[0] < shown.high
    assert range_of([1e-3, 1.0], LOSS).log
    assert not range_of([1e-3, 1.0], ACCURACY).log
    assert range_of([2.0], LOSS).low < 2 < range_of([2.0], LOSS).high


def test_labels_of_choices_are_short_and_different() -> None:
    assert labels([[32], "x" * 20, None, True], 8) == ["[32]", "xxxxx...", "", "true"]
    assert labels(["same beginning one", "same beginning two"], 11) == ["same... one", "same... two"]
    assert len(set(labels([f"{'a' * 20}{x}{'b' * 20}" for x in "xyz"], 12))) == 3


# The page and the command


class Links(HTMLParser):
    """Collects the tags, and whatever could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_the_page_is_self_contained_and_escapes_what_users_wrote(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = study(tmp_path, Objective(evil, "min"), file=f"{evil}.yaml")
    add(made, {evil: f"{evil}&"}, COMPLETE, [0.5], folder="x")
    add(made, {evil: "b"}, FAIL, reason=evil)
    found = read(tmp_path)
    text = page(found, 5, f"# {evil}\n", draw(found))
    parsed = Links()
    parsed.feed(text)
    assert "script" not in parsed.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;</td>" in text
    assert parsed.links
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert base64.b64decode(parsed.links[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def ddl(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main.run([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(code), out, err


def test_the_command_prints_and_writes_and_leaves_the_study_as_it_is(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = (searched / "journal.log").read_bytes()
    (searched / "importance.png").write_text("of an earlier call")
    code, out, err = ddl(capsys, "tune", "show", searched, "--best", 1)
    assert code == 0
    assert out.startswith("model.yaml: 3 of 10 trials ended")
    assert "3 more trials are in trials.csv." in out
    assert err.splitlines() == [
        "importance.png: Importance needs 4 complete trials; there are 2.",
        f"{searched}/report.html written, and best.yaml, trials.csv, trials.json and pictures",
    ]
    assert sorted(path.name for path in searched.iterdir()) == [
        "best.yaml", "curves.png", "history.png", "journal.log", "model.yaml", "parallel.png", "report.html",
        "slices.png", "timeline.png", "trials.csv", "trials.json",
    ]  # fmt: skip
    assert (searched / "journal.log").read_bytes() == journal
    opened = optuna.load_study(
        study_name="ddl", storage=JournalStorage(JournalFileBackend(str(searched / "journal.log")))
    )
    assert opened.best_trial.number == 4


def test_the_command_writes_json_and_to_another_folder(
    searched: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.tune.show.save.draw", lambda search: [])
    code, out, _ = ddl(capsys, "tune", "show", searched, "--json", "-o", searched / "new" / "place")
    assert code == 0
    assert json.loads(out)["best"] == [1]
    assert out == (searched / "new" / "place" / "trials.json").read_text()
    assert not (searched / "report.html").exists()


def test_a_folder_without_a_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ddl(capsys, "tune", "show", tmp_path)
    assert (code, err) == (2, f"ddl: {tmp_path}: no search in this folder; expected a folder that ddl tune wrote\n")


def test_a_study_that_was_killed_at_its_beginning_is_refused(tmp_path: Path) -> None:
    optuna.create_study(study_name="ddl", storage=JournalStorage(JournalFileBackend(str(tmp_path / "journal.log"))))
    with pytest.raises(UserError, match="the study does not say its file, so ddl tune ended before it began"):
        read(tmp_path)


# The live view


class Terminal(io.StringIO):
    """A terminal of `COLUMNS` and `LINES` that keeps what was written."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def frames(self) -> list[list[str]]:
        """Return the lines of each drawing, without colours."""
        drawings = re.split(
            r"(?:\r?\x1b\[(?:1A|2K))+", self.getvalue().replace("\x1b[?25l", "").replace("\x1b[?25h", "")
        )
        return [re.sub(r"\x1b\[[0-9;]*m", "", drawing).split("\n") for drawing in drawings]


VALUES = {"optimizer.lr": 0.015, "model.hidden": [64, 64], "model.name": "mlp", "data.name": "digits"}


def run_through(live: Live, count: int) -> None:
    """Let trials run one after another; the second is pruned and the third fails."""
    for number in range(count):
        curve = {step: 0.5 + step / 8 - number / 128 for step in range(1, 4)}
        live.changed(record(number, "running", values=VALUES, curve=curve))
        live.update(1, 4)
        done: dict[str, Any] = {"values": VALUES, "curve": curve, "spans": [(0.0, 3.14, ["h:0"])]}
        if number == 1:
            live.changed(record(number, "pruned", **done))
        elif number == 2:
            live.changed(record(number, "failed", reason="rank 1:\nout of memory", **done))
        else:
            live.changed(record(number, "complete", curve[3], **done))


def test_without_a_terminal_each_trial_that_ends_is_a_line() -> None:
    stream = io.StringIO()
    live = Live(10, [ACCURACY, LOSS], stream)
    live.changed(record(7, "complete", 0.25, 1.0))  # of an earlier process
    run_through(live, 3)
    live.changed(record(4, "running"))
    live.changed(record(4, "complete", 0.9, 0.125, curve={1: 0.9}, spans=[(0, 1, ["a"])]))
    live.changed(record(4, "complete", 0.9, 0.125, curve={1: 0.9}, spans=[(0, 1, ["a"])]))
    live.close()
    assert stream.getvalue().splitlines() == [
        "trial 0: accuracy 0.875 after 3 evaluations, 3.1 s; best 0.875 (trial 0)",
        "trial 1: pruned at accuracy 0.8672 after 3 evaluations, 3.1 s; best 0.875 (trial 0)",
        r"trial 2: failed after 3 evaluations, 3.1 s: rank 1:\nout of memory; best 0.875 (trial 0)",
        "trial 4: accuracy 0.9, loss 0.125 after 1 evaluation, 1.0 s; best 0.9 (trial 4)",
    ]


def test_quiet_shows_messages_only(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    live = Live(10, [ACCURACY], stream, quiet=True)
    run_through(live, 3)
    live.say("trial 3, attempt 1: lost")
    live.close()
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == "ddl: trial 3, attempt 1: lost\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Terminal]:
    def make(columns: int, lines: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("cli.tune.show.live.elapsed", lambda seconds: "1:05")
        return Terminal()

    return make


def test_a_terminal_has_a_table(terminal: Callable[[int, int], Terminal]) -> None:
    stream = terminal(80, 24)
    live = Live(10, [ACCURACY], stream)
    run_through(live, 4)
    live.changed(record(4, "running", values=VALUES, curve={1: 0.1, 2: 0.9, 3: 0.4}))
    live.close()
    assert [line.rstrip() for line in stream.frames()[-1] if line] == [
        "4/10 trials, 1 failed, 1 pruned, 1:05, 1 of 4 slots",
        "accuracy: best 0.875 (trial 0)",
        "trial  state     accuracy  best    evals  curve  values",
        "0      best      0.875     0.875   3      ▁▅█    lr 0.015, hidden [64, 64], m...",
        "1      pruned    0.8672    0.8672  3      ▁▅█    lr 0.015, hidden [64, 64], m...",
        r"2      failed    0.8594    0.8594  3      ▁▅█    rank 1:\nout of memory",
        "3      complete  0.8516    0.8516  3      ▁▅█    lr 0.015, hidden [64, 64], m...",
        "4      running   0.4       0.9     3      ▁█▄    lr 0.015, hidden [64, 64], m...",
    ]


@pytest.mark.parametrize(("columns", "lines"), [(40, 10), (80, 24), (20, 5), (200, 6)])
def test_the_table_fits_the_terminal(columns: int, lines: int, terminal: Callable[[int, int], Terminal]) -> None:
    stream = terminal(columns, lines)
    live = Live(1000, [ACCURACY], stream)
    run_through(live, 8)
    for number in range(30):
        live.changed(
            record(100 + number, "running", values={"data.path": "long " * 50}, curve=dict.fromkeys(range(99), 0.5))
        )
    live.close()
    last = [line for line in stream.frames()[-1] if line]
    assert len(last) <= lines - 1
    assert max(map(len, last)) <= columns
    shown = sum("running" in line and not line.endswith("more running") for line in last)
    assert last[-1] == f"{30 - shown} more running"
    assert shown == max(0, lines - 1 - 2 - 2 - 1)


def test_a_narrow_terminal_has_the_columns_that_matter_most(terminal: Callable[[int, int], Terminal]) -> None:
    stream = terminal(40, 12)
    live = Live(10, [ACCURACY], stream)
    run_through(live, 1)
    live.close()
    assert [line.rstrip() for line in stream.frames()[-1] if line][1:] == [
        "accuracy: best 0.875 (trial 0)",
        "trial  state  accuracy  curve",
        "0      best   0.875     ▁▅█",
    ]


def test_a_continued_trial_counts_once(terminal: Callable[[int, int], Terminal]) -> None:
    stream = terminal(80, 24)
    live = Live(10, [ACCURACY], stream)
    live.changed(record(0, "pruned"))
    live.changed(record(1, "complete", 0.1))
    for _ in range(2):
        live.changed(record(2, "failed", continues=0))
    live.close()
    assert stream.frames()[-1][0].strip().startswith("2/10 trials, 1 failed, 1:05")
    assert [line.split()[:2] for line in stream.frames()[-1][3:] if line] == [
        ["1", "best"],
        ["0", "pruned"],
        ["2", "failed"],
    ]


def test_drawing_waits_and_does_not_depend_on_the_number_of_trials(
    terminal: Callable[[int, int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(80, 24)
    live = Live(100_000, [ACCURACY], stream)
    for number in range(10_000):
        live.changed(record(number, "complete", number / 1e4))
        live.update(1, 4)
    assert len(stream.frames()) < 10
    asked: list[int] = []
    monkeypatch.setattr(Configuration, "last", property(lambda c: asked.append(c.number) or 0.5))
    live.close()
    assert sorted(asked) == [9995, 9996, 9997, 9998, 9999]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], ""),
        ([math.nan], ""),
        ([3.0], "▄"),
        ([1.0, 1.0], "▄▄"),
        ([0.0, math.inf, 7.0], "▁█"),
        ([float(i) for i in range(8)], BLOCKS),
        ([float(i) for i in range(80)], BLOCKS),
    ],
)
def test_a_curve_is_a_row_of_blocks(curve: list[float], expected: str) -> None:
    assert sparkline(curve, 8) == expected
