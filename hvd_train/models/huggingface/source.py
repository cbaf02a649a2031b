"""Where a model comes from: a folder, a name on the hub, or a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvd_train.config.fetched import place
from hvd_train.data.hub import endpoint, reaches_hub
from hvd_train.errors import UserError, nearest
from hvd_train.models.huggingface.library import library, reason
from hvd_train.models.huggingface.tasks import Task

CONFIG = "config.json"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FAILURES = (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What the library raises for files and options that it cannot use."""


@dataclass(frozen=True)
class Pretrained:
    """A model in a folder, or on the hub. No code and no pickled weights of it are executed."""

    path: str
    pickled: bool
    local: bool
    """True: the library asks no other host."""

    @classmethod
    def at(cls, path: str, *, pickled: bool) -> Pretrained:
        """Return the model at `path`; UserError for a folder without a model, or with other weights only."""
        folder = place(path)
        if not folder.is_dir():
            if not HUB_NAME.fullmatch(path):
                raise UserError(f"model.pretrained: no folder '{path}'{_near(folder)}")
            return cls(path, pickled, local=not reaches_hub())
        _check_folder(folder, path, pickled)
        return cls(str(folder), pickled, local=True)

    def config(self) -> Any:
        try:
            return library().AutoConfig.from_pretrained(self.path, local_files_only=self.local, trust_remote_code=False)
        except _FAILURES as error:
            raise self._unreadable(error) from error

    def model(self, task: Task, config: Any) -> Any:
        """Return the model with float32 weights. Weights that the file lacks are random.

        safetensors files are mapped into memory, so the ranks of a host share their pages.
        """
        try:
            model, report = getattr(library(), task.auto).from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=not self.pickled,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=self.local,
                trust_remote_code=False,
            )
        except _FAILURES as error:
            raise self._unreadable(error) from error
        self._check(model, report)
        return model

    def _unreadable(self, error: Exception) -> UserError:
        if self.local and not Path(self.path).is_dir() and isinstance(error, OSError):
            return UserError(
                f"model.pretrained: no folder '{self.path}'{_near(Path(self.path))}, and {endpoint()} cannot be reached from "
                f"here; on a host that reaches it, run hf download {self.path} --local-dir FOLDER, copy FOLDER, and give its path"
            )
        return UserError(f"model.pretrained: '{self.path}' cannot be read: {reason(error)}")

    def _check(self, model: Any, report: Mapping[str, Any]) -> None:
        """Raise UserError if the weights below the head are of another model."""
        inner = f"{model.base_model_prefix}."
        differing = next((name for name, *_ in sorted(report["mismatched_keys"]) if name.startswith(inner)), None)
        if differing is not None:
            raise UserError(
                f"model.pretrained: '{differing}' has another shape in '{self.path}' than its {CONFIG} says"
            )
        names = {name for name in model.state_dict() if name.startswith(inner)}
        missing = names.intersection(report["missing_keys"])
        if 2 * len(missing) > len(names):
            raise UserError(
                f"model.pretrained: the weights in '{self.path}' lack {len(missing)} of {len(names)} tensors of its {CONFIG}, "
                f"such as '{min(missing)}'; expected the weights of a {model.config.model_type}"
            )


@dataclass(frozen=True)
class Fresh:
    """A model with random weights."""

    options: Mapping[str, Any]
    """`model_type`, and what else differs from the library's configuration of this type."""

    def config(self) -> Any:
        """Return the configuration; UserError for an unknown type or option."""
        auto = library().AutoConfig
        kind, options = self.options.get("model_type"), {**self.options}
        options.pop("model_type", None)
        known = library().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        if kind not in known:
            what = "is missing" if kind is None else f"no '{kind}' in transformers {library().__version__}"
            raise UserError(f"model.config.model_type: {what}{nearest(str(kind), known) if kind else ', such as bert'}")
        default = auto.for_model(kind)
        names = {*default.to_dict(), *default.attribute_map, "num_labels"}
        for name in options:
            if name not in names:
                raise UserError(f"model.config: no option '{name}' of a {kind}{nearest(name, names)}")
        try:
            return auto.for_model(kind, **options)
        except Exception as error:  # huggingface_hub has errors of its own for wrong types
            raise UserError(f"model.config: {reason(error)}") from error

    def model(self, task: Task, config: Any) -> Any:
        try:
            return getattr(library(), task.auto).from_config(config, dtype=torch.float32, trust_remote_code=False)
        except _FAILURES as error:
            raise UserError(
                f"model.config: transformers cannot make this {config.model_type}: {reason(error)}"
            ) from error


def _check_folder(folder: Path, path: str, pickled: bool) -> None:
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"model.pretrained: no {CONFIG} in '{path}', expected a folder that save_pretrained of transformers wrote"
        )
    has_tensors, has_pickle = any(folder.glob("*.safetensors")), any(folder.glob("pytorch_model*.bin"))
    if pickled and not has_pickle:
        raise UserError(f"model.pickled: no pytorch_model.bin in '{path}'; leave pickled out")
    if not pickled and not has_tensors:
        raise UserError(
            f"model.pretrained: no .safetensors file in '{path}'; "
            + (
                "it has pickled weights, which can execute code: save the model again by save_pretrained, or set "
                "model.pickled: true if you trust who made them"
                if has_pickle
                else "expected model.safetensors, as save_pretrained of transformers writes it"
            )
        )


def _near(folder: Path) -> str:
    """Return the folder beside the missing `folder` that has nearly its name, for a message."""
    known = [one.name for one in folder.parent.iterdir() if one.is_dir()] if folder.parent.is_dir() else []
    return nearest(folder.name, known).partition(" (choices")[0]
