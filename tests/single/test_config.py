"""The YAML file: what is accepted, and what is said of what is not."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.arguments.configuration import RunFile
from hvd_train.config import document, plugins
from hvd_train.config.json_schema import json_schema
from hvd_train.config.launch import Launch, parse_document, to_document
from hvd_train.config.resolve import expand, resolve, specialise
from hvd_train.config.schema import Config
from hvd_train.config.section import PluginSection
from hvd_train.errors import UserError
from hvd_train.text import strict_json

MINIMAL = "model: mlp\ndata: digits\n"


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve(document.parse(text, "m.yaml"), overrides)
    return str(caught.value).splitlines()


def config(text: str, *overrides: str) -> Config:
    return resolve(document.parse(text, "m.yaml"), overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "train: {epoch: 3}", "m.yaml:3: train.epoch: unknown key; did you mean 'epochs'?"),
        (MINIMAL + "train:\n  epochs: many", "m.yaml:4: train.epochs: expected an integer, got 'many'"),
        (MINIMAL + "train:\n  epochs: '3'", "m.yaml:4: train.epochs: expected an integer, got '3'"),
        (MINIMAL + "train:\n  epochs: true", "m.yaml:4: train.epochs: expected an integer, got True"),
        (MINIMAL + "train:\n\n  epochs: 0", "m.yaml:5: train.epochs: expected greater than 0, got 0"),
        (MINIMAL + "train: {epochs: 1, steps: 1}", "m.yaml:3: train: give 'epochs' or 'steps', not both"),
        (MINIMAL + "train: {eval_every: x}", "m.yaml:3: train.eval_every: expected an integer or 'epoch', got 'x'"),
        (MINIMAL + "train: {precision: fp8}", "m.yaml:3: train.precision: expected 'fp32', 'fp64', 'bf16' or 'fp16'"),
        ("data: digits", "m.yaml: model: is missing"),
        ("model: mlpp\ndata: digits", "m.yaml:1: model.name: no 'mlpp' here; did you mean 'mlp'?"),
        ("model: mlp\ndata:\n  name: digit", "m.yaml:3: data.name: no 'digit' here; did you mean 'digits'?"),
        ("model: {hidden: [3]}\ndata: digits", "m.yaml:1: model.name: is missing"),
        ("model: {name: mlp, hiden: [3]}\ndata: digits", "m.yaml:1: model.hiden: unknown key; did you mean 'hidden'?"),
        ("model: {name: mlp, hidden: [a]}\ndata: digits", "m.yaml:1: model.hidden.0: expected an integer, got 'a'"),
        (MINIMAL + "optimizer: adamww", "m.yaml:3: optimizer.name: no 'adamww' here; did you mean 'AdamW'?"),
        (MINIMAL + "optimizer: {name: SGD, betas: [1, 2]}", "m.yaml:3: optimizer.betas: unknown key"),
        (MINIMAL + "optimizer: {lr: fast}", "m.yaml:3: optimizer.lr: expected a number, got 'fast'"),
        (
            MINIMAL + "sync: {strategy: allreduc}",
            "m.yaml:3: sync.strategy: no 'allreduc' here; did you mean 'allreduce'",
        ),
        (
            MINIMAL + "sync: {compression: fp61}",
            "m.yaml:3: sync.compression.name: no 'fp61' here; did you mean 'fp16'?",
        ),
        (MINIMAL + "data: digits", "m.yaml:3: 'data' stands twice"),
        (MINIMAL + "train: [", "m.yaml:3: not valid YAML"),
        (MINIMAL + "train: !!python/object/apply:os.system [ls]", "m.yaml:3: the tag"),
        (MINIMAL + "train: 3", "m.yaml:3: train: expected fields (epochs, steps"),
        ("- a", "m.yaml:1: expected sections"),
        ("", "m.yaml: empty"),
    ],
)
def test_each_mistake_has_its_line_its_field_and_the_nearest_choice(text: str, message: str) -> None:
    found = "\n".join(mistakes(text))
    assert message in found


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes("model: mlpp\ndata: {name: digits, batch_size: 0}\ntrain: {epoch: 1}")) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=x", "command line: 'train.epochs=x': train.epochs: expected an integer, got 'x'"),
        ("train.epcohs=1", "command line: 'train.epcohs=1': train.epcohs: unknown key; did you mean 'epochs'?"),
        ("train.epochs", "command line: 'train.epochs' is not an override; expected key=value"),
        ("=1", "command line: '=1' is not an override"),
        ("seed.x=1", "command line: 'seed.x=1': 'seed' has no fields"),
        ("train.epochs=[", "command line: 'train.epochs=[':1: not valid YAML"),
    ],
)
def test_overrides_are_checked_like_the_file(override: str, message: str) -> None:
    assert message in "\n".join(mistakes(MINIMAL + "seed: 1", override))


@pytest.mark.parametrize("name", ["local_sgd", "Local-SGD"])
def test_names_match_in_any_case_and_with_hyphens(name: str) -> None:
    assert config(MINIMAL, f"sync.strategy={name}", "sync.period=3").sync.member == "local_sgd"


def test_overrides_reach_every_section_and_a_name_alone_may_gain_options() -> None:
    made = config(MINIMAL, "train.epochs=3", "sync.compression=fp16", "model.hidden=[7]", "optimizer.lr=1e-3")
    assert (made.train.epochs, made.sync.compression.name) == (3, "fp16")
    assert made.model.options["hidden"] == [7]
    assert made.optimizer.options == {"lr": 0.001}


def test_numbers_in_exponent_form_are_numbers() -> None:
    assert config(MINIMAL + "optimizer: {lr: 1e-3, weight_decay: -0E0}").optimizer.options["lr"] == 0.001


def test_a_target_on_the_command_line_replaces_the_name() -> None:
    text = "model: mlp\ndata: digits\nsync: {strategy: allreduce}"
    assert config(text, "sync.target=a.b:c", "model.target=d:e").sync.label == "a.b:c"


def test_a_name_beside_a_target_is_refused() -> None:
    with pytest.raises(UserError, match="'strategy' and 'target' exclude each other; leave one of them out"):
        config("model: mlp\ndata: digits\nsync: {strategy: allreduce, target: a.b:c}")


def test_a_target_needs_no_name() -> None:
    model = config("model: {target: a.b:c, args: {x: 1}, y: 2}\ndata: digits").model
    assert (model.member, model.label, model.options) == ("target", "a.b:c", {"x": 1, "y": 2})


def test_the_document_for_the_ranks_says_the_same() -> None:
    made = config(MINIMAL, "optimizer={name: AdamW, betas: [0.8, 0.9]}", "data.partition=round_robin", "seed=3")
    launch = Launch(world_size=4, engine="mpi", output="/tmp/a b", tee=[0, 3], columns=80)
    again, launched = parse_document(to_document(made, launch))
    assert again.model_dump() == made.model_dump()
    assert launched.model_dump() == launch.model_dump()


words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8)
trees: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=12,
)
sections = st.dictionaries(st.sampled_from(list(Config.model_fields)) | words, trees, max_size=6)


@given(sections)
def test_any_values_are_a_configuration_or_a_user_error(values: dict[str, Any]) -> None:
    with suppress(UserError):
        resolve(document.parse(yaml.safe_dump(values, allow_unicode=True), "m.yaml"))


@given(st.text(max_size=60))
def test_any_text_is_a_document_or_a_user_error(text: str) -> None:
    with suppress(UserError):
        document.parse(text, "m.yaml")


@given(words.filter(lambda w: "=" not in w), st.text(max_size=20))
def test_any_override_is_applied_or_a_user_error(key: str, value: str) -> None:
    with suppress(UserError):
        resolve(document.parse(MINIMAL, "m.yaml"), [f"{key}={value}"])


def test_an_alias_that_contains_itself_is_refused() -> None:
    assert "contains itself" in mistakes("model: &a\n  x: *a\ndata: digits")[0]


def test_the_schema_accepts_what_the_program_accepts() -> None:
    validator = jsonschema.Draft202012Validator(json_schema(RunFile))
    validator.check_schema(json_schema(RunFile))
    for file in Path("examples").glob("**/*.yaml"):
        if file.parent.name != "profiles":
            validator.validate(yaml.safe_load(file.read_text()))
    validator.validate({"model": "mlp", "data": {"target": "a:b"}, "optimizer": {"lr": 0.1}, "sync": {"fusion_mb": 1}})
    for wrong in (
        {"model": "mlp"},
        {"model": "mlpp", "data": "digits"},
        {"model": {"name": "mlp", "x": 1}, "data": "digits"},
    ):
        assert not validator.is_valid(wrong), wrong
    assert json.loads(json.dumps(json_schema(RunFile))) == json_schema(RunFile)


@pytest.mark.parametrize("family", [f for f in plugins.FAMILIES if f not in {"launchers"}])
def test_every_member_can_be_listed_without_being_imported(family: str) -> None:
    package = plugins.FAMILIES[family]
    for name in plugins.names(package):
        assert plugins.summary(package, name), f"{name} has no docstring"
        for word, field in plugins.options(package, name).model_fields.items():
            assert field.description, f"{name}.{word} does not say what it changes"


@pytest.mark.parametrize("section", PluginSection.__subclasses__(), ids=lambda s: s.__name__)
def test_no_option_of_a_member_hides_a_common_field(section: type[PluginSection]) -> None:
    for name in section.members():
        assert not set(section.member_fields(name)) & set(section.model_fields) - {section.selector}, name


def test_every_field_says_what_it_changes() -> None:
    def walk(kind: Any) -> None:
        for word, info in kind.model_fields.items():
            inner = [
                c for c in (info.annotation, *getattr(info.annotation, "__args__", ())) if hasattr(c, "model_fields")
            ]
            assert inner or info.description, f"{kind.__name__}.{word}"
            for section in inner:
                walk(section)

    walk(Config)


def test_specialise_leaves_the_written_values_alone() -> None:
    values = {"model": "mlp", "data": {"name": "digits"}}
    before = json.dumps(values)
    specialise(Config, expand(Config, values), (), [])
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "text_classification", "path": "t.csv"}, "MODEL/tokenizer.json"),
        ({"name": "text", "paths": ["t.txt"]}, "MODEL/tokenizer.json"),
        ({"name": "text", "paths": ["t.txt"], "tokenizer": {"name": "bytes"}}, None),
        ({"name": "jsonl", "path": "t.jsonl", "inputs": "x", "target": "y"}, None),
    ],
)
def test_texts_are_read_by_the_tokenizer_of_the_pretrained_model(
    data: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").touch()
    text = strict_json.dumps(
        {"data": data, "model": {"name": "huggingface", "task": "sequence-classification", "pretrained": str(tmp_path)}}
    )

    def path() -> str | None:
        return getattr(getattr(config(text).data, "tokenizer", None), "path", None)

    assert path() == (expected and expected.replace("MODEL", str(tmp_path)))
    (tmp_path / "tokenizer.json").unlink()
    assert path() is None
