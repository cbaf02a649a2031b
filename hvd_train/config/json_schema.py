"""The JSON Schema of the YAML file, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from hvd_train.config.schema import Config
from hvd_train.config.section import ARGS, TARGET, PluginSection, Section
from hvd_train.config.sections import inner_sections, listed_sections


def json_schema(kind: type[Config] = Config) -> dict[str, Any]:
    """Return the JSON Schema of a YAML file, with the sections of `kind` and all options of plugins."""
    definitions: dict[str, Any] = {}
    schema = _schema(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}


def _schema(kind: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    plain = kind.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= {k: v for k, v in plain.pop("$defs", {}).items() if k not in definitions}
    for key, section in inner_sections(kind):
        plain["properties"][key] = _schema(section, definitions)
    for key, section in listed_sections(kind):
        plain["properties"][key]["items"] = _schema(section, definitions)
    if not issubclass(kind, PluginSection):
        return {"anyOf": [plain["properties"][kind.shorthand], plain]} if kind.shorthand else plain
    names = kind.members()
    choices = [_member_schema(kind, name, plain, definitions) for name in names]
    if names:
        choices.insert(0, {"enum": names})
    if kind.takes_target:
        choices.append(_target_schema(kind, plain))
    return {"anyOf": choices}


def _member_schema(
    kind: type[PluginSection], name: str, plain: dict[str, Any], definitions: dict[str, Any]
) -> dict[str, Any]:
    options: type[Section] = create_model(name, __base__=Section, **kind.fields_with(name))
    own = options.model_json_schema(ref_template="#/$defs/{model}")
    for _, section in (*inner_sections(options), *listed_sections(options)):
        if section.__name__ not in definitions:
            definitions[section.__name__] = {}  # the section may have itself among its options
            definitions[section.__name__] = _schema(section, definitions)
    properties = {**plain["properties"], **own.get("properties", {}), kind.selector: {"const": name}}
    required = own.get("required", [])
    if name != kind.default:
        required = [kind.selector, *required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _target_schema(kind: type[PluginSection], plain: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a section with a target, whose options the schema cannot know."""
    target = {"type": "string", "description": f"package.module:callable that returns {kind.product}"}
    args = {"type": "object", "description": "keyword arguments of the callable whose names the section has itself"}
    properties = {**plain["properties"], kind.selector: {"const": TARGET}, TARGET: target, ARGS: args}
    return {"type": "object", "properties": properties, "required": [TARGET]}
