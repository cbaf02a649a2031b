"""The samples that `--data` names."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_train.config.schema import DataSection
from hvd_train.config.section import TARGET
from hvd_train.errors import UserError
from hvd_train.text import strict_json

_PATHS = ("path", "paths")
_HELD_OUT = "test_path"


def held_out(section: DataSection, overrides: Sequence[str]) -> list[str]:
    """Return `overrides` in which a new path is that of the held-out samples too, in the order of the file.

    The training data of the run is then not read. UserError for several paths.
    """
    if section.member == TARGET or _HELD_OUT not in section.member_fields(section.member):
        return list(overrides)
    return [more for one in overrides for more in _both(one)]


def _both(override: str) -> list[str]:
    key, equals, value = override.partition("=")
    if key.strip() not in _PATHS:
        return [override]
    if not equals or value.lstrip().startswith(("[", "{")):
        raise UserError(f"--data: expected one path to evaluate, as {key}=PATH, got '{override}'")
    return [f"paths=[{strict_json.dumps(value)}]" if key.strip() == "paths" else override, f"{_HELD_OUT}={value}"]
