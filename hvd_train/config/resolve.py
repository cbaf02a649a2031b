"""From a document to a checked configuration.

Sections that choose a plugin hold the options of the plugin beside their own fields. So the type of
a configuration depends on the names in it, and `specialise` makes the type. A plugin section may be
written as just the name: `model: mlp` is `model: {name: mlp}`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import Field, ValidationError, create_model

from hvd_train.config import parameters
from hvd_train.config.document import Document, Path_
from hvd_train.config.mistakes import Mistakes, explain, explain_value
from hvd_train.config.pretrained import with_tokenizer_of_model
from hvd_train.config.schema import Config
from hvd_train.config.section import ARGS, TARGET, PluginSection, Section
from hvd_train.config.sections import inner_sections, listed_sections, section_at
from hvd_train.errors import UserError, nearest
from hvd_train.text.names import match

S = TypeVar("S", bound=Section)
C = TypeVar("C", bound=Config)


def resolve(document: Document, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in `document` after `overrides`.

    UserError has one line for each mistake.
    """
    return resolve_as(Config, document, overrides)


def resolve_as(kind: type[C], document: Document, overrides: Sequence[str] = ()) -> C:
    """Do what `resolve` does for `kind`, which may add sections to `Config`."""
    document.values = expand(kind, document.values)
    for assignment in overrides:
        _replace_name(kind, document, document.override(assignment))
    document.values = with_tokenizer_of_model(document.values)
    return read_section(kind, document)


def _replace_name(kind: type[Section], document: Document, path: Path_) -> None:
    """Remove the name of a member from the section in which an override at `path` sets a target."""
    section = section_at(kind, path[:-1])
    if path[-1] != TARGET or not issubclass(section, PluginSection) or not section.takes_target:
        return
    values: Any = document.values
    for key in path[:-1]:
        values = values[key]
    if ":" in str(values[TARGET]):  # data sources of tables have an option of this name
        values.pop(section.selector, None)


def read_section(kind: type[S], document: Document) -> S:
    """Return the section that the whole of `document` is.

    UserError has one line for each mistake.
    """
    values = expand(kind, document.values)
    mistakes: Mistakes = []
    kind = specialise(kind, values, (), mistakes)
    try:
        section = kind.model_validate(values)
    except ValidationError as error:
        mistakes += explain(error, kind, values)
    if mistakes:
        lines = (f"{document.place(path)}: {'.'.join(map(str, path))}: {text}" for path, text in mistakes)
        raise UserError("\n".join(lines))
    return section


def target_sections(section: Section, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Yield the path and the text of each `target` in `section` and in the sections within it."""
    if isinstance(section, PluginSection) and section.member == TARGET:
        yield (*path, TARGET), section.label
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from target_sections(value, (*path, key))
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                if isinstance(item, Section):
                    yield from target_sections(item, (*path, key, i))


def expand(kind: type[Section], values: Any) -> Any:
    """Return `values` with every plugin section and the names of members written out in full.

    Names get the case of the member. A section with `target` and without a name gets the name `target`.
    """
    if issubclass(kind, PluginSection):
        values = _named(kind, values)
    if kind.shorthand and not isinstance(values, dict):
        values = {kind.shorthand: values}
    if not isinstance(values, dict):
        return values
    kind = _with_options(kind, values)
    inner, listed = dict(inner_sections(kind)), dict(listed_sections(kind))
    return {key: _expanded(inner.get(key), listed.get(key), value) for key, value in values.items()}


def _expanded(section: type[Section] | None, item: type[Section] | None, value: Any) -> Any:
    if section is not None and value is not None:
        return expand(section, value)
    if item is not None and isinstance(value, list):
        return [expand(item, one) for one in value]
    return value


def _named(kind: type[PluginSection], values: Any) -> Any:
    if isinstance(values, str):
        values = {kind.selector: values}
    elif isinstance(values, dict) and TARGET in values and kind.takes_target:
        values = {kind.selector: TARGET, **values}
    name = values.get(kind.selector) if isinstance(values, dict) else None
    member = match(name, kind.members()) if isinstance(name, str) else None
    return values if member is None else {**values, kind.selector: member}


def specialise(kind: type[S], values: Any, path: Path_, mistakes: Mistakes) -> type[S]:
    """Return `kind` with the fields of the members that `values` names in its plugin sections.

    Append to `mistakes` what is wrong with names of members and with options of targets.
    """
    values = values if isinstance(values, dict) else {}
    if issubclass(kind, PluginSection):
        mistakes += _member_mistakes(kind, values, path)
    kind = _with_options(kind, values)
    fields: dict[str, Any] = {}
    for key, section in inner_sections(kind):
        fields[key] = _with_type(kind, key, specialise(section, values.get(key), (*path, key), mistakes))
    for key, section in listed_sections(kind):
        if isinstance(given := values.get(key), list) and given:
            items = (specialise(section, one, (*path, key, i), mistakes) for i, one in enumerate(given))
            fields[key] = (tuple[tuple(items)], Field(strict=False))  # type: ignore[misc]
    return create_model(kind.__name__, __base__=kind, **fields) if fields else kind


def _with_options(kind: type[S], values: dict[str, Any]) -> type[S]:
    """Return `kind` with the options of the member that `values` names, which may be sections too."""
    if not issubclass(kind, PluginSection):
        return kind
    name = values.get(kind.selector, kind.default)
    if name in kind.members():
        return _of_member(kind, name)
    if not isinstance(name, str):
        return kind
    fields: dict[str, Any] = {}
    if name == TARGET and kind.takes_target:
        fields[TARGET] = (str, Field(description="package.module:callable"))
        fields[ARGS] = (dict[str, Any], Field({}, description="keyword arguments of the callable"))
    return create_model(kind.__name__, __base__=kind, __cls_kwargs__={"extra": "allow"}, **fields)


@functools.lru_cache(maxsize=256)  # a search reads many documents that name the same members
def _of_member(kind: type[S], name: str) -> type[S]:
    """Return the plugin section `kind` with the options of its member `name`."""
    assert issubclass(kind, PluginSection)
    return create_model(kind.__name__, __base__=kind, **kind.fields_with(name))


def _member_mistakes(kind: type[PluginSection], values: dict[str, Any], path: Path_) -> Mistakes:
    """Return what is wrong with the name of the member, or with the options of a target."""
    name = values.get(kind.selector, kind.default)
    if name in kind.members() or not isinstance(name, str):
        return []
    if name == TARGET and kind.takes_target:
        return _option_mistakes(kind, values, path)
    return [((*path, kind.selector), kind.unknown(name))]


def _option_mistakes(kind: type[PluginSection], values: dict[str, Any], path: Path_) -> Mistakes:
    """Return the mistakes in the options of a target, as far as its source shows the parameters."""
    text, args = values.get(TARGET), values.get(ARGS)
    known = parameters.read(text, kind.count_passed, kind.called_with) if isinstance(text, str) else None
    own = {*kind.model_fields, TARGET, ARGS}
    given: dict[Path_, Any] = {(key,): value for key, value in values.items() if key not in own}
    if isinstance(args, dict):
        twice = [((*path, key), "stands here and in 'args'; give it once") for (key,) in given if key in args]
        if twice:
            return twice
        given |= {(ARGS, key): value for key, value in args.items()}
    if known is None:
        return []
    checked = (((*path, *at), _problem(known, str(at[-1]), value)) for at, value in given.items())
    names = {at[-1] for at in given} | own
    missing = [((*path, key), "is missing") for key, p in known.items() if p.required and key not in names]
    return [(at, problem) for at, problem in checked if problem] + missing


def _problem(known: dict[str, parameters.Parameter], key: str, value: Any) -> str | None:
    """Return what is wrong with the option `key` of a target with the parameters `known`."""
    if key not in known:
        return f"unknown key{nearest(key, known)}"
    try:
        known[key].check(value)
    except ValidationError as error:
        return explain_value(error, value)
    return None


def _with_type(kind: type[Section], key: str, section: type[Section]) -> tuple[Any, Any]:
    """Return the definition of the field `key` with the type `section`, and a default if it has one."""
    info = kind.model_fields[key]
    if type(None) in get_args(info.annotation):
        return (section | types.NoneType, info.default)
    return (section, ... if info.is_required() else Field(default_factory=section))
