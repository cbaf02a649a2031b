"""Where the data sets lie that `ddl data fetch` has brought to this machine."""

from __future__ import annotations

import os
from pathlib import Path

from hvd_train.errors import UserError

PREFIX = "fetched:"
"""Begins a path of the YAML file that is relative to the folder of all sets, as `fetched:trec/trec.csv`."""


def root() -> Path:
    """Return the folder with a folder for each data set: `ddl/data` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddl" / "data"


def place(path: str) -> Path:
    """Return the place that a path of the YAML file names.

    `~` is the home folder, and `fetched:NAME/FILE` a file of a data set of `ddl data fetch`. Raise
    UserError for a data set that is not on this machine.
    """
    if not path.startswith(PREFIX):
        return Path(path).expanduser()
    name, _, file = path.removeprefix(PREFIX).partition("/")
    if name in {"", ".", ".."} or not (root() / name).is_dir():
        raise UserError(f"'{path}' is not on this machine; bring it with: ddl data fetch {name}".rstrip())
    return root() / name / file
