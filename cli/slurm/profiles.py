"""Merge the request to SLURM: command line over `slurm:` of the YAML file over a profile.

A profile is a YAML file with the fields of `slurm:`. Users have them in ~/.config/ddl/profiles,
sites in /etc/ddl/profiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.slurm.schema import SlurmProfile, SlurmSection
from hvd_train.config import document
from hvd_train.config.document import Document, Path_
from hvd_train.config.resolve import read_section
from hvd_train.errors import UserError, nearest

SITE = Path("/etc/ddl/profiles")


def settings(
    flags: Mapping[str, Any], written: SlurmSection, folders: tuple[Path, ...], place: str = "slurm.profile"
) -> SlurmProfile:
    """Return the three layers merged; UserError has one line for each mistake in them.

    The keys of `flags` are field names. `place` is where the YAML file names its profile, for
    messages.
    """
    places: dict[Path_, str] = {(name,): f"--{name.replace('_', '-')}" for name in flags}
    given = read_section(SlurmSection, Document(dict(flags), "command line", places))
    name = given.profile or written.profile
    layers = [given, written, *([load(name, folders, "--profile" if given.profile else place)] if name else [])]
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _over(merged, layer.model_dump(exclude_unset=True, exclude={"profile"}))
    return SlurmProfile(**merged)


def load(name: str, folders: tuple[Path, ...], place: str) -> SlurmProfile:
    """Read the profile NAME.yaml from the first of `folders` that has it.

    `place` names it in messages.
    """
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return read_section(SlurmProfile, document.read(path))
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    where = " or ".join(map(str, folders))
    raise UserError(f"{place}: no profile '{name}' in {where}{nearest(name, known)}")


def folders(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return the folders of profiles: that of the user, then that of the site."""
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "/")) / ".config"
    return Path(home) / "ddl" / "profiles", SITE


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below`, and values that are dictionaries key by key."""
    both = {k: {**below[k], **v} for k, v in above.items() if isinstance(v, dict) and k in below}
    return {**below, **above, **both}
