"""What `ddl run` and `ddl submit` run: a YAML file, a Python script or a module."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_train.errors import UserError

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class YamlFile:
    """A YAML file, and `KEY=VALUE` overrides of its fields."""

    path: Path
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its runs."""
        return self.path.stem


@dataclass(frozen=True)
class Script:
    """A Python script and its own arguments."""

    path: Path
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its runs."""
        return self.path.stem

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command line that name it."""
        return (str(self.path.absolute()),)


@dataclass(frozen=True)
class Module:
    """A Python module and its own arguments."""

    module: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its runs."""
        return self.module.replace(".", "-")

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command line that name it."""
        return ("-m", self.module)


Entrypoint = YamlFile | Script | Module


def entrypoint(command: str, target: str | None, module: str | None, arguments: Sequence[str]) -> Entrypoint:
    """Return what the words of `command` name.

    After `-m MODULE`, `target` is the first argument of the module. UserError if the words name
    nothing that can run.
    """
    if module is not None:
        return Module(module, (*([target] if target is not None else []), *arguments))
    path = Path(target or "")
    if path.suffix in YAML:
        return YamlFile(path, tuple(arguments))
    if path.suffix != ".py":
        subject = f"'{target}'" if target else command
        raise UserError(f"{subject}: expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; expected a Python script")
    return Script(path, tuple(arguments))
