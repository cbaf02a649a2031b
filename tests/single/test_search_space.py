"""What a search varies: notation, conditions, constraints, and words for `ddl run`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.arguments.configuration import load
from cli.search.quiet import quiet
from cli.search.space import Choice, Condition, Integer, Space, Uniform, check_space, fields_of, parse_space
from cli.search.space.constraints import holds, names, parse
from hvd_train.config.document import Document
from hvd_train.errors import UserError
from hvd_train.text import strict_json

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space(section: dict[str, Any] | None = None, constraints: list[str] = [], sets: list[str] = []) -> Space:
    return parse_space(section or {}, constraints, sets, lambda field: f"s.yaml:{field}")


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("uniform(0, 0.5)", Uniform(0.0, 0.5)),
        (" Uniform( -1,1e0 , .5) ", Uniform(-1.0, 1.0, 0.5)),
        ("log(1e-4, 1e-1)", Uniform(1e-4, 1e-1, log=True)),
        ("int(1, 8)", Integer(1, 8)),
        ("int(1, 1e3, 3)", Integer(1, 1000, 3)),
        ("logint(16, 512)", Integer(16, 512, log=True)),
        ([1, 2], Choice((1, 2))),
        ([[32], [64, 64], None, True, {"name": "x"}], Choice(([32], [64, 64], None, True, {"name": "x"}))),
    ],
)
def test_a_domain_is_a_text_or_a_list(written: Any, domain: Any) -> None:
    (dimension,) = space({"a.b": written}).dimensions
    assert (dimension.field, dimension.domain, dimension.when, dimension.place) == ("a.b", domain, None, "s.yaml:a.b")


def test_conditions_order_the_dimensions_and_options_replace_fields() -> None:
    made = space(
        {
            "c": {"range": [1, 2], "when": "b in [0.5, 1]"},
            "b": {"range": "uniform(0, 1, 0.5)", "when": "a=SGD"},
            "d": "int(1, 2)",
            "a": ["SGD", "Adam"],
        },
        sets=["d=log(1,2)", "e=[[1],[2]] when d in [1.5]", "f=[true] when a = Adam"],
    )
    assert [d.field for d in made.dimensions] == ["d", "a", "b", "e", "f", "c"]
    when = {d.field: d.when for d in made.dimensions}
    assert when["b"] == Condition("a", ("SGD",))
    assert when["c"] == Condition("b", (0.5, 1.0))
    assert when["e"] == Condition("d", (1.5,))
    assert when["f"] == Condition("a", ("Adam",))
    assert made.dimensions[0].domain == Uniform(1.0, 2.0, log=True)
    assert made.dimensions[0].place == "--set 'd=log(1,2)'"


MISTAKES = [
    ("log(1e-4", "expected a list of values or a range (uniform(a, b)"),
    (0.1, "expected a list of values or a range (uniform(a, b)"),
    ("unifrom(0, 1)", "no range 'unifrom'; did you mean 'uniform'?"),
    ("log(1, 2, 3)", "'log(1, 2, 3)' has 3 numbers; expected log(a, b)"),
    ("int(3)", "'int(3)' has 1 numbers; expected int(a, b) or int(a, b, step)"),
    ("uniform(1, 1)", "'uniform(1, 1)' is empty; expected a first number below the second"),
    ("int(5, 2)", "'int(5, 2)' is empty; expected a first number below the second"),
    ("log(0, 1)", "'log(0, 1)' is on a logarithmic scale; expected a first number above 0"),
    ("logint(0, 5)", "'logint(0, 5)' is on a logarithmic scale; expected a first number above 0"),
    ("uniform(0, 1, 0)", "'uniform(0, 1, 0)' has the step 0; expected a step above 0"),
    ("int(0, 9, -1)", "'int(0, 9, -1)' has the step -1; expected a step above 0"),
    ("uniform(0, 1, 2)", "'uniform(0, 1, 2)' has a step that is larger than the range; expected up to 1"),
    ("int(1, 2.5)", "'int(1, 2.5)' has the fractional number 2.5; expected whole numbers"),
    ("int(1, 1e300)", "'int(1, 1e300)' has a number beyond 2**53"),
    ("uniform(0, nan)", "'nan' in 'uniform(0, nan)' is no finite number"),
    ("uniform(0, inf)", "'inf' in 'uniform(0, inf)' is no finite number"),
    ("uniform(0, 1e999)", "'1e999' in 'uniform(0, 1e999)' is no finite number"),
    ([], "the list is empty; expected at least one value"),
    ([1, 2, 1], "1 is listed twice"),
    ([1, [float("nan")]], "has a number that is not finite"),
    ({"range": [1], "wen": "b=1"}, "unknown key 'wen'; did you mean 'when'?"),
    ({"when": "b=1"}, "'range' is missing"),
    ({"range": [1], "when": "b"}, "when: 'b' is no condition; expected FIELD=VALUE"),
    ({"range": [1], "when": "b in []"}, "when: 'b in []' is no condition; expected FIELD=VALUE"),
    ({"range": [1], "when": "bb=1"}, "when: 'bb' is not varied; did you mean 'b'?"),
    ({"range": [1], "when": "a=1"}, "when: 'a' is not varied"),
    ({"range": [1], "when": "b=3"}, "when: 3 is no value of b, which has [1, 2]"),
    ({"range": [1], "when": "b=true"}, "when: true is no value of b"),
    ({"range": [1], "when": "i=1.5"}, "when: 1.5 is no value of i, which has int(1, 9, 2)"),
    ({"range": [1], "when": "i=2"}, "when: 2 is no value of i, which has int(1, 9, 2)"),
    ({"range": [1], "when": "u=0.25"}, "when: 0.25 is no value of u, which has uniform(0.0, 1.0, 0.1)"),
]


@pytest.mark.parametrize(("written", "message"), MISTAKES)
def test_a_mistake_in_the_notation_is_one_line_with_its_place(written: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        space({"b": [1, 2], "i": "int(1, 9, 2)", "u": "uniform(0, 1, 0.1)", "a": written})
    assert str(error.value).startswith("s.yaml:a: a: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(UserError) as error:
        space({"a": [], "optimizer": ["SGD"], "optimizer.lr": "log(1,0)"}, ["a <"], ["x", "y=[1]", "y=[2]", "z=[1"])
    assert [line.partition(": ")[0] for line in str(error.value).splitlines()] == [
        "--set 'x'",
        "--set 'z=[1'",
        "--set 'y=[2]'",
        "s.yaml:a",
        "s.yaml:optimizer.lr",
        "s.yaml:optimizer.lr",
        "constraint 'a <'",
    ]
    assert "is varied, and so is the section 'optimizer'" in str(error.value)
    with pytest.raises(UserError, match="b: the conditions of b, c depend on one another"):
        space({"a": [1], "b": {"range": [1], "when": "c=1"}, "c": {"range": [1], "when": "b=1"}})


MIXED = {
    "name": ["SGD", "Adam"],
    "lr": "log(1e-4, 1e-1)",
    "momentum": {"range": "uniform(0, 0.9, 0.1)", "when": "name=SGD"},
    "hidden": [[32], [64, 64]],
    "flag": [1, True, None],
    "count": "int(1, 7, 2)",
}


def test_a_trial_gets_values_of_yaml_and_optuna_keeps_its_own() -> None:
    made = space(MIXED)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(200):
        trial = study.ask()
        values = made.suggest(trial)
        assert values == made.values(trial.params)
        assert ("momentum" in values) == (values["name"] == "SGD")
        assert values["hidden"] in ([32], [64, 64])
        assert trial.params["hidden"] in ("[32]", "[64, 64]")
        assert trial.params["flag"] in ("1", "true", "null")
        seen.add(values.get("momentum"))
    assert seen == {None, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    assert any(t.params.get("momentum") == 0.30000000000000004 for t in study.trials)


def test_plain_choices_reach_optuna_as_they_are() -> None:
    trial = optuna.create_study().ask()
    space({"a": ["x", 1.5, None, True]}).suggest(trial)
    assert trial.distributions["a"].choices == ("x", 1.5, None, True)


def test_the_size_counts_points_under_conditions() -> None:
    assert space(MIXED).size() is None
    finite = space({**MIXED, "lr": [0.1]})
    # SGD has 10 values of momentum, Adam none; two lists, three flags, four counts.
    assert finite.size() == (10 + 1) * 2 * 3 * 4
    nested = space(
        {
            "a": "int(1, 5)",
            "b": {"range": [1, 2, 3], "when": "a in [1, 2]"},
            "c": {"range": [1, 2], "when": "b=3"},
            "d": {"range": [1, 2], "when": "a=2"},
        }
    )
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler())
    study.optimize(lambda trial: len(nested.suggest(trial)))
    assert nested.size() == len(study.trials) == 3 + 4 + 4 * 2


def test_equal_spaces_are_described_equally_and_as_json() -> None:
    first, again = space(MIXED, ["lr < 1"]), parse_space(MIXED, ["lr < 1"], [], lambda field: "elsewhere")
    assert strict_json.dumps(first.describe()) == strict_json.dumps(again.describe())
    assert first.describe() != space({**MIXED, "lr": "log(1e-4, 1)"}, ["lr < 1"]).describe()
    assert first.describe() != space(MIXED).describe()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["1e-05", "null", "yes", "~", "0x1f", "1:30", "a: b", "- x", "[", "#", "", " a", "\x7f", "\U0001f600"]
    )
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES)
def test_overrides_read_back_as_exactly_the_same_value(value: Any) -> None:
    (word,) = Space(()).overrides({"a.b": value, "np": 2, "strategy": "allreduce"})
    document = Document({}, "")
    document.override(word)
    assert repr(document.values["a"]["b"]) == repr(value)
    assert "\n" not in word


def test_overrides_are_readable() -> None:
    values = {"optimizer.name": "SGD", "optimizer.lr": 1e-05, "model.hidden": [64, 64], "x": {"a": None, "b": "1e3"}}
    assert Space(()).overrides(values) == [
        "optimizer.name=SGD",
        "optimizer.lr=1e-05",
        "model.hidden=[64, 64]",
        'x={a: null, b: "1e3"}',
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("data.batch_size * np <= 512", True),
        ("data.batch_size * np < 512", False),
        ("1 < np <= 4 < 5", True),
        ("np - 1 == 3 and np / 8 == 0.5 and np // 3 == 1 and np % 3 == 1", True),
        ("optimizer.lr < 0.1 or optimizer.name == 'SGD'", True),
        ("not optimizer.name == 'SGD'", False),
        ('optimizer.name != "Adam"', True),
        ("max(np, 8) == 8 and min(np, 8) == 4 and abs(-np) == 4", True),
        ("2 ** np == 16", True),
        ("9 ** 9 ** 9 ** 9 < 1", False),
        ("np / 0 < 1", False),
        ("(0 - 8) ** 0.5 == 1", False),
        ("flag == true and none == null", True),
        ("missing.field > 3", True),
        ("missing.field > 3 or np > 9", True),
    ],
)
def test_constraints_compare_fields(text: str, answer: bool) -> None:
    values = {"data.batch_size": 128, "np": 4, "optimizer.lr": 0.5, "optimizer.name": "SGD", "flag": True, "none": None}
    assert holds(text, values) is answer


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch x') == 0",
        "().__class__.__bases__ == 1",
        "'a'.upper() == 'A'",
        "open('x') == 1",
        "max == 1 and max(1) == 1",
        "abs(1, 2) == 1",
        "max(1, 2, key=abs) == 1",
        "max(*[1, 2]) == 1",
        "(lambda: 1)() == 1",
        "lambda: 1",
        "[x for x in y] == 1",
        "[1] == np",
        "np in (1, 2)",
        "np is None",
        "np if np else 1",
        "(np := 3) == 3",
        "f'{np}' == '1'",
        "np << 2 == 1",
        "~np == 1",
        "a[0] == 1",
        "1j == 1",
        "1e999 > np",
        "b'x' == np",
        "... == np",
        "np",
        "np + 1",
        "np = 1",
        "np == 1; np == 2",
        "",
        "(" * 300 + "1" + ")" * 300 + " == 1",
        "-" * 480 + "1 == 1",
        "np == " + "1 + " * 200 + "1",
    ],
)
def test_constraints_never_evaluate_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"expected a comparison of fields|longer than|nested more than"):
        parse(text)
    assert not list(tmp_path.iterdir())


def test_constraints_take_no_time_or_memory() -> None:
    start = time.perf_counter()
    assert holds("10 ** 300 * 10 ** 300 > 1", {}) in (True, False)
    assert not holds("10 ** 10 ** 10 > 1", {})
    with pytest.raises(UserError, match="constraint 'a \\* 10 \\*\\* 10 == b': cannot be computed for a='x', b=1"):
        holds("a * 10 ** 10 == b", {"a": "x", "b": 1})
    with pytest.raises(UserError, match="'x' is no number"):
        holds("a * 1000 == b", {"a": "x", "b": 1})
    assert time.perf_counter() - start < 0.5


def test_a_constraint_on_a_field_that_is_left_out_holds() -> None:
    made = space(
        {"name": ["SGD", "Adam"], "momentum": {"range": "uniform(0,1)", "when": "name=SGD"}}, ["momentum < lr"]
    )
    assert names("momentum < lr and momentum > a.b") == ["momentum", "lr", "a.b"]
    assert not replace(made, fixed={"lr": 0.1}).admits({"name": "SGD", "momentum": 0.5})
    assert replace(made, fixed={"lr": 0.6}).admits({"name": "SGD", "momentum": 0.5})
    assert replace(made, fixed={"lr": 0.1, "momentum": 0.9}).admits({"name": "Adam"})


FILE = "model: {name: mlp, hidden: [8]}\ndata: digits\ntrain: {epochs: 1}\noptimizer: {name: SGD, lr: 0.1}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(FILE)
    return path


def test_every_edge_of_the_space_is_loaded_once(file: Path) -> None:
    loaded: list[tuple[str, ...]] = []

    def load_and_count(values: Mapping[str, Any]) -> object:
        loaded.append(tuple(made.overrides(values)))
        return load(file, loaded[-1])

    made = space(
        {
            "optimizer.lr": "log(1e-4, 1)",
            "optimizer.name": ["SGD", "Adam"],
            "optimizer.momentum": {"range": "uniform(0, 0.9)", "when": "optimizer.name=SGD"},
            "optimizer.weight_decay": {"range": [0.1, 0.2], "when": "optimizer.name=Adam"},
            "np": [1, 2, 4],
            "strategy": ["allreduce", "local_sgd:period=8"],
        },
        ["optimizer.lr * train.epochs < np"],
    )
    check_space(replace(made, fixed=fields_of(load(file, []).model_dump())), load_and_count)
    assert len(loaded) == 4  # each of two names with two values of its option
    edges = {"lr=0.0001", "lr=1.0", "name=SGD", "name=Adam", "momentum=0.0", "momentum=0.9", "weight_decay=0.1"}
    assert {f"optimizer.{e}" for e in edges} | {"optimizer.weight_decay=0.2"} == {w for words in loaded for w in words}


def test_values_that_the_configuration_refuses_are_named_with_their_place(file: Path) -> None:
    made = space(
        {
            "optimizer.lr": "uniform(-1, 1)",
            "optimizer.name": ["SGD", "Adem"],
            "optimizer.momentum": "uniform(0, 0.9)",
            "model.hidden": [[8], "wide"],
            "train.epoch": [1],
        }
    )
    with pytest.raises(UserError) as error:
        check_space(made, lambda values: load(file, made.overrides(values)))
    lines = str(error.value).splitlines()
    starts = {line.split(": ")[0] + ": " + line.split(": ")[1] for line in lines}
    assert {
        "s.yaml:optimizer.name: optimizer.name=Adem",
        "s.yaml:model.hidden: model.hidden=wide",
        "s.yaml:train.epoch: train.epoch=1",
    } <= starts
    assert len(lines) == len(set(lines))
    assert "did you mean 'Adam'?" in str(error.value)
    assert "did you mean 'epochs'?" in str(error.value)
    only_sgd = space({"optimizer.name": ["SGD", "Adam"], "optimizer.momentum": "uniform(0, 0.9)"})
    with pytest.raises(UserError, match=r"^s\.yaml:optimizer\.momentum: optimizer\.momentum=0\.0: unknown key"):
        check_space(only_sgd, lambda values: load(file, only_sgd.overrides(values)))


@pytest.mark.parametrize("written", ["uniform(1, 4)", [1, 2.5], [0, 1], "int(0, 4)", ["2"], [True]])
def test_np_is_a_whole_number_from_1(written: Any) -> None:
    with pytest.raises(UserError, match=r"s\.yaml:np: np: expected whole numbers from 1, got "):
        check_space(space({"np": written}), lambda values: None)


def test_names_and_types_in_constraints_are_checked() -> None:
    made = space({"np": [1, 2], "name": ["a", "b"]}, ["npp < 2", "data.batch_size < np"])
    with pytest.raises(UserError) as error:
        check_space(replace(made, fixed={"data.batch_size": 4, "data": {}}), lambda values: None)
    assert str(error.value).startswith("constraint 'npp < 2': no field 'npp'; did you mean 'np'?")
    with pytest.raises(UserError, match="constraint 'name < 2': cannot be computed for name='a'"):
        check_space(space({"name": ["a", "b"]}, ["name < 2"]), lambda values: None)


def test_dimensions_share_loads(file: Path) -> None:
    loaded: list[list[str]] = []
    fields: dict[str, Any] = {f"f{i}": "uniform(0, 1)" for i in range(20)} | {"c": [1, 2, 3]}
    made = space(fields)
    check_space(made, lambda values: loaded.append(made.overrides(values)))
    assert len(loaded) == 3
    assert {f"f{i}={end}" for i in range(20) for end in ("0.0", "1.0")} <= {w for words in loaded for w in words}
