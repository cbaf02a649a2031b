"""What a job needs on every host, from the argv of a rank."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.preflight.check import Needs
from cli.target import RANK
from hvd_train import script_options, words


def needs(program: Sequence[str], folder: Path, environment: Mapping[str, str] = os.environ) -> Needs:
    """Of a job started in `folder`: the script, or the modules and data files that the configuration names.

    `environment` has the variables that the ranks get.
    """
    told = program[len(RANK) :]
    if told[0] != "--script":
        config = json.loads(words.join(told[0], environment))["config"]
        return Needs(folder, tuple(_modules(config, folder)), tuple(_data(config, folder)))
    _, script = script_options.split(told[1:])
    return Needs(folder) if script[0] == "-m" else Needs(folder, (script[0],))


def _modules(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Files in `folder` that `target: module:callable` names; installed packages are compared by their versions."""
    for section in config.values():
        target = section.get("target") if isinstance(section, dict) else None
        if isinstance(target, str):
            stem = folder.joinpath(*target.partition(":")[0].split("."))
            yield from (str(path) for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file())


def _data(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    options = config["data"] if isinstance(config["data"], dict) else {}
    for word, value in options.items():
        if word != "name" and isinstance(value, str) and (folder / Path(value).expanduser()).exists():
            yield str(folder / Path(value).expanduser())
