"""A run folder, as the commands that use a trained model find it. It imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train.config.chosen import chosen
from hvd_train.config.document import Document
from hvd_train.config.fold_section import names_test_samples
from hvd_train.config.resolve import resolve
from hvd_train.config.schema import Config
from hvd_train.errors import UserError
from hvd_train.state.checkpoint_folder import CHECKPOINTS, MANIFEST, folder_name, folders, read_best, run_of

CONFIG, DATA, ENVIRONMENT = "config.json", "data.json", "environment.json"
_NO_PATHS = {
    "name",
    "target",
    "task",
    "label_key",
    "features",
    "inputs",
    "classes",
    "split",
    "test_split",
    "subset",
    "user",
    "item",
    "rating",
    "time",
    "kind",
    "group",
}
"""Options of data sources whose texts are no paths, even if a file has the same name."""
_PATTERN = set("*?[{")


@dataclass(frozen=True)
class Run:
    """A run and the checkpoint of it that is used."""

    folder: Path
    checkpoint: Path
    config: Config
    data: dict[str, Any]
    """How a row of the source becomes an input (`data.preprocessing`); empty for runs of older versions."""
    environment: dict[str, Any]
    """Versions, host, ranks and folder of the run (`rank.environment`); empty for runs of older versions."""

    @property
    def search_path(self) -> list[str]:
        """Folders in which the modules of targets are, for `sys.path`."""
        return list(dict.fromkeys([os.getcwd(), *filter(os.path.isdir, [self.environment.get("folder", "")])]))


def find_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """Return the run at `path`, which is a run folder or a checkpoint in one.

    A run folder stands for its best checkpoint if it marks one, otherwise for its newest.
    `overrides` are KEY=VALUE for the section `data`. Relative paths in data options are those of the
    folder in which the run was started. Raise UserError if there is no run or no checkpoint.
    """
    path = Path(os.path.abspath(path))
    folder = run_of(path) if (path / MANIFEST).is_file() else path
    if folder is None:
        raise UserError(f"{path}: this checkpoint is not in a run folder; give the run folder that it is from")
    if not (folder / CONFIG).is_file():
        kind = "a run of a script has no model that ddl knows" if folder.is_dir() else "no such folder"
        raise UserError(f"{path}: {kind}; expected the run folder of a YAML file, such as runs/NAME-TIME")
    environment = _read(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    data = described(folder)
    values = _read(folder / CONFIG)
    started = Path(environment.get("folder", os.curdir))
    values["data"] = _with_paths(values.get("data"), started)
    values["model"] = _with_pretrained(values.get("model"), started)
    saved = resolve(Document(values, str(folder / CONFIG)))
    written = chosen(saved)
    if saved.train.device == "cuda":
        written["train"]["device"] = "auto"  # this machine may have no GPU
    if any(names_test_samples(one.partition("=")[0]) for one in overrides):
        written["data"].pop("fold", None)  # a fold would leave them out
    config = resolve(Document(written, "--data"), [f"data.{one}" for one in overrides])
    checkpoint = path if path != folder else _checkpoint(folder)
    return Run(folder, checkpoint, config, data, environment)


def _checkpoint(folder: Path) -> Path:
    """Return the best checkpoint of the run in `folder`, or its newest."""
    parent = folder / CHECKPOINTS
    best = read_best(parent)
    newest = next((f for f in folders(parent) if (f / MANIFEST).is_file()), None)
    found = newest if best is None else parent / folder_name(best.step)
    if found is None:
        raise UserError(f"{folder}: the run has no checkpoint; let it reach one, see checkpoint.every")
    return found


def described(folder: Path) -> dict[str, Any]:
    """Return `data.json` of a run folder; empty for runs of older versions."""
    return _read(folder / DATA) if (folder / DATA).is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _with_pretrained(options: Any, folder: Path) -> Any:
    """Return model `options` in which the folder of pretrained weights is absolute if it exists in `folder`."""
    key = "pretrained"
    return (
        {**options, key: _with_paths(options[key], folder)} if isinstance(options, dict) and key in options else options
    )


def _with_paths(options: Any, folder: Path) -> Any:
    """Return data `options` in which the relative paths that exist in `folder` are absolute."""
    if isinstance(options, dict):
        return {k: v if k in _NO_PATHS else _with_paths(v, folder) for k, v in options.items()}
    if isinstance(options, list):
        return [_with_paths(one, folder) for one in options]
    if not isinstance(options, str) or not any(map(str.isalnum, options)):
        return options
    path = folder / Path(options).expanduser()
    exists = path.exists() or (_PATTERN & set(options) and path.parent.is_dir())
    return str(path) if exists else options
