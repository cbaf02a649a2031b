"""Members of the user's own in every family, as `target: module:callable`: what `ddl validate` refuses, and what ranks do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvd_train.config import document
from hvd_train.config.launch import Launch, parse_document, to_document
from hvd_train.config.resolve import resolve, target_sections
from hvd_train.config.schema import Config
from hvd_train.errors import UserError
from hvd_train.monitor.base import Sink

MINIMAL = "model: mlp\ndata: digits\n"
SOURCE = """
raise RuntimeError("imported")

import functools
from fractions import Fraction
from hvd_train.config.options import Annotated, Field, Literal as L, PositiveInt

ASYNCHRONOUS = "wild"

def create(context, *, period: Annotated[PositiveInt, "steps"] = 2, wild: bool = False): ...
def needs(context, *, period: int): ...
def shadows(*, share: Fraction, kind: L["a", "b"] = "a", bound: Annotated[float, Field(ge=-1)] = 0, late: "int" = 1): ...
def any_options(context, **options): ...
def positional(context, batches, /, period): ...
def clashes(*, batch_size=1, name="x", copy=2, _hidden=3): ...
def model(spec, *, width: int): ...
def no_spec(width: int): ...
def evil(*, x: print("executed") = 1): ...

@functools.cache
def decorated(context, *, period): ...

class Strategy:
    def __init__(self, context, *, period: int = 2): ...

class Inherits(Strategy): ...

def hidden(context): ...
if True:
    def hidden(context, *, perod): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def config(text: str, *overrides: str) -> Config:
    return resolve(document.parse(text, "m.yaml"), overrides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sync: {target: 'mine:create', perod: 3}", "3: sync.perod: unknown key; did you mean 'period'?"),
        ("sync: {target: 'mine:create', period: 0}", "3: sync.period: expected greater than 0, got 0"),
        ("sync: {target: 'mine:create', wild: 1}", "3: sync.wild: expected a boolean, got 1"),
        ("sync: {target: 'mine:create', context: 1}", "3: sync.context: unknown key (choices: period, wild)"),
        ("sync: {target: 'mine:create', args: {perod: 3}}", "3: sync.args.perod: unknown key; did you mean 'period'?"),
        (
            "sync: {target: 'mine:create', period: 3, args: {period: 3}}",
            "3: sync.period: stands here and in 'args'; give it once",
        ),
        ("sync: {target: 'mine:create', args: 3}", "3: sync.args: expected a dictionary, got 3"),
        ("sync: {target: 'mine:needs'}", "3: sync.period: is missing"),
        ("sync:\n  target: 'mine:Strategy'\n  perod: 3", "5: sync.perod: unknown key; did you mean 'period'?"),
        ("sync: {target: 'mine:positional', batches: 3}", "3: sync.batches: unknown key (choices: period)"),
        ("sync: {target: 3}", "3: sync.target: expected a string, got 3"),
        ("sync: {strategy: target}", "m.yaml:3: sync.target: is missing"),
        (
            "sync: {compression: {target: 'mine:shadows', kind: c, share: 1}}",
            "sync.compression.kind: expected 'a' or 'b'",
        ),
        ("sync: {compression: {target: 'mine:shadows', share: 1, bound: -2}}", "expected greater than or equal to -1"),
        ("monitor: {sinks: [{target: 'mine:needs'}]}", "3: monitor.sinks.0.period: is missing"),
        (
            "monitor:\n  sinks:\n  - target: 'mine:Strategy'\n  - target: 'mine:Strategy'\n    preiod: 1",
            "7: monitor.sinks.1.preiod: unknown key; did you mean 'period'?",
        ),
        ("monitor: {sinks: {}}", "3: monitor.sinks: expected a list, got {}"),
        ("monitor: {sinks: [jsonl]}", "3: monitor.sinks.0.name: no 'jsonl' here"),
        ("optimizer: {target: 'mine:create'}", "3: optimizer.target: unknown key"),
        (
            "sync: {strategy: local_sgd, target: 'mine:create'}",
            "3: sync.target: 'strategy' and 'target' exclude each other",
        ),
    ],
)
def test_options_of_a_target_are_checked_by_its_source(text: str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        config(MINIMAL + text)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("sync: {target: 'mine:create', period: 3}", {"period": 3}),
        ("sync: {target: 'mine:needs', args: {period: 3}}", {"period": 3}),
        ("sync: {target: 'mine:any_options', perod: 3}", {"perod": 3}),
        ("sync: {target: 'mine:decorated', perod: 3}", {"perod": 3}),
        ("sync: {target: 'mine:Inherits', perod: 3}", {"perod": 3}),
        ("sync: {target: 'mine:hidden', perod: 3}", {"perod": 3}),
        ("sync: {target: 'math:sqrt', perod: 3}", {"perod": 3}),
        ("sync: {target: 'nowhere:create', perod: 3}", {"perod": 3}),
        ("sync: {target: 'not a target', perod: 3}", {"perod": 3}),
    ],
)
def test_options_that_the_source_does_not_show_go_to_the_ranks(text: str, options: dict[str, Any]) -> None:
    made = config(MINIMAL + text)
    assert made.sync.options == options
    launch = Launch(world_size=1, engine="single", output="x")
    assert parse_document(to_document(made, launch))[0].sync.options == options


def test_an_option_whose_name_the_section_has_goes_through_args() -> None:
    data = config("model: mlp\ndata: {target: 'mine:clashes', batch_size: 8, copy: 5, args: {batch_size: 3}}").data
    assert (data.batch_size, data.options) == (8, {"batch_size": 3, "copy": 5})


def test_a_model_is_passed_the_spec_only_if_its_first_parameter_is_called_so() -> None:
    for name in ("model", "no_spec"):
        assert config(f"model: {{target: 'mine:{name}', width: 3}}\ndata: digits").model.options == {"width": 3}
    with pytest.raises(UserError, match=r"model.spec: unknown key"):
        config("model: {target: 'mine:model', width: 3, spec: 4}\ndata: digits")


def test_the_source_of_a_user_is_never_executed(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    code = (
        "import sys; from hvd_train.config import document; from hvd_train.config.resolve import resolve;"
        f"made = resolve(document.parse({MINIMAL!r} + 'sync: {{compression: {{target: \"mine:evil\", x: 5}}}}', 'm'));"
        "assert made.sync.compression.options == {'x': 5}; assert not {'mine', 'torch'} & set(sys.modules)"
    )
    root = document.__file__.removesuffix("/hvd_train/config/document.py")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root}, cwd=folder)
    assert "executed" not in capfd.readouterr().out


def test_a_strategy_says_in_its_module_whether_ranks_outlive_others() -> None:
    assert not config(MINIMAL + "sync: {target: 'mine:create'}").sync.asynchronous
    assert config(MINIMAL + "sync: {target: 'mine:create', wild: true}").sync.asynchronous
    assert not config(MINIMAL + "sync: {target: 'math:sqrt'}").sync.asynchronous


def test_every_target_is_found_wherever_it_stands() -> None:
    text = "sync: {target: 'a:b', compression: {target: 'c:d'}}\nmonitor: {sinks: [{target: 'e:f'}]}\n"
    made = config(f"model: {{target: 'g:h'}}\ndata: {{target: 'i:j', partition: {{target: 'k:l'}}}}\n{text}")
    assert {".".join(map(str, path)): target for path, target in target_sections(made)} == {
        "model.target": "g:h",
        "data.target": "i:j",
        "data.partition.target": "k:l",
        "sync.target": "a:b",
        "sync.compression.target": "c:d",
        "monitor.sinks.0.target": "e:f",
    }


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("sync: {target: 'builtins:print'}", "returned a value of type NoneType, expected a SyncStrategy"),
        ("sync: {target: 'hvd_train.sync.strategies.local_sgd:SIZE'}", "no 'SIZE' in module"),
        ("sync: {target: 'hvd_train.errors:UserError.x'}", "expected 'package.module:callable'"),
        ("sync: {target: 'math:pi'}", "'pi' is of type float, expected a callable"),
        (
            "sync: {target: 'collections:OrderedDict', x: 3}",
            "returned a value of type OrderedDict, expected a SyncStrategy",
        ),
    ],
)
def test_what_only_a_call_can_show_is_refused_in_one_sentence(section: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        config(MINIMAL + section).sync.create({}, expected=Sink)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
