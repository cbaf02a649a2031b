"""What the user asks a search for, as the folder of the search keeps it."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train.errors import UserError


@dataclass(frozen=True)
class Request:
    """The arguments of `ddl tune` that decide what is tried, and where. Empty ones were not given.

    `search` has overrides of the section `search:`.
    """

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    space: Path | None = None
    strategies: str | None = None
    search: tuple[str, ...] = ()
    np: int | None = None
    parallel: str | None = None
    hosts: str | None = None
    hostfile: Path | None = None
    engine: str | None = None
    iface: str | None = None
    ssh_args: str | None = None
    warm: bool = False
    """Runs share ranks that stay alive."""
    slurm: bool = False
    """Each run is a job of SLURM."""
    detach: bool = False
    """The search itself is a job of SLURM."""

    def kept_in(self, folder: Path) -> Request:
        """Copy the files of the request to `folder`: later changes of them do not change the search."""
        return dataclasses.replace(self, file=_copy(self.file, folder), space=_copy(self.space, folder))

    def over(self, earlier: Request) -> Request:
        """Return `earlier` with all that this request gives in its place."""
        given = {name: value for name, value in vars(self).items() if value}
        return dataclasses.replace(earlier, **{**given, "search": (*earlier.search, *self.search)})

    def dump(self) -> dict[str, Any]:
        """Return the request as JSON."""
        kept = dataclasses.replace(self, detach=False)
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(kept).items()}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Request:
        """Return the request that `dump` returned."""
        paths = {name: Path(values[name]) for name in ("file", "space", "hostfile") if values[name]}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, **paths})

    @property
    def path(self) -> Path:
        """The YAML file; UserError if none was given."""
        if self.file is None:
            raise UserError(
                "ddl tune: expected a YAML file, such as ddl tune model.yaml --set 'optimizer.lr=log(1e-4,1e-1)'"
            )
        return self.file


def _copy(file: Path | None, folder: Path) -> Path | None:
    return None if file is None else Path(shutil.copy(file, folder / file.name)).absolute()
