"""What a job asks of SLURM: flags, then the YAML file's `slurm:`, then a profile, each filling in what those before left out.

A profile is a YAML file with the fields of `slurm:`, in ~/.config/ddl/profiles of a user or /etc/ddl/profiles of a site.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvd_train import document
from hvd_train.config import SlurmProfile, SlurmSection, read_section
from hvd_train.document import Document, Path_
from hvd_train.errors import UserError, nearest

SITE = Path("/etc/ddl/profiles")


def settings(
    flags: Mapping[str, Any], written: SlurmSection, folders: tuple[Path, ...], place: str = "slurm.profile"
) -> SlurmProfile:
    """The three layers in one; `flags` have the names of the fields. UserError has a line for each mistake in them.

    `place` is where the file names its profile.
    """
    places: dict[Path_, str] = {(name,): f"--{name.replace('_', '-')}" for name in flags}
    told = read_section(SlurmSection, Document(dict(flags), "command line", places))
    name = told.profile or written.profile
    layers = [told, written, *([load(name, folders, "--profile" if told.profile else place)] if name else [])]
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _over(merged, layer.model_dump(exclude_unset=True, exclude={"profile"}))
    return SlurmProfile(**merged)


def load(name: str, folders: tuple[Path, ...], place: str) -> SlurmProfile:
    """The profile NAME.yaml in the first of `folders` that has one; `place` is where it was asked for."""
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return read_section(SlurmProfile, document.read(path))
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    where = " or ".join(map(str, folders))
    raise UserError(f"{place}: no profile '{name}' in {where}{nearest(name, known)}")


def folders(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where profiles are: the user's before the site's."""
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "/")) / ".config"
    return Path(home) / "ddl" / "profiles", SITE


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; fields that are tables themselves are merged word by word."""
    both = {k: {**below[k], **v} for k, v in above.items() if isinstance(v, dict) and k in below}
    return {**below, **above, **both}
