"""Folders of new runs: each belongs to one run, also where several begin in one second."""

from __future__ import annotations

import atexit
import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from hvd_train.errors import UserError

RUNS = Path("runs")


def new(stem: str, output: Path | None, *, dry: bool, otherwise: str) -> Path:
    """The folder of a new run: `output`, else runs/STEM-TIME; it is made unless `dry`.

    UserError where `output` exists, with what the user may do `otherwise`.
    """
    if output is None:
        return free(stem) if dry else claim(stem)
    try:
        if output.exists():
            raise FileExistsError
        return output.absolute() if dry else make(output)
    except FileExistsError:
        raise UserError(f"--output: {output} exists; give another folder, or {otherwise}") from None


def claim(stem: str) -> Path:
    """Make runs/STEM-TIME, or runs/STEM-TIME-2 and so on where another run has that name; its absolute path.

    A claimed folder that is still empty when this process ends is removed.
    """
    for folder in _names(stem):
        with contextlib.suppress(FileExistsError):
            return make(folder)
    raise AssertionError("names do not end")


def free(stem: str) -> Path:
    """The folder that `claim` would make now; writes nothing."""
    return next(folder for folder in _names(stem) if not folder.exists()).absolute()


def make(folder: Path) -> Path:
    """Make `folder` as `claim` does; FileExistsError where it exists, UserError where it cannot be made."""
    folder = folder.absolute()
    made = [folder, *(parent for parent in folder.parents if not parent.exists())]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        folder.mkdir()
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused(folder, error) from None
    atexit.register(_remove_empty, made)
    return folder


def make_new(folder: Path) -> Path:
    """Make `folder` as `make` does; UserError where it exists."""
    try:
        return make(folder)
    except FileExistsError:
        raise UserError(f"--output: {folder} exists; give another folder") from None


def is_begun(folder: Path) -> bool:
    """Whether anything was written to `folder`."""
    return folder.is_dir() and any(folder.iterdir())


def newest(stem: str) -> Path | None:
    """The run of `stem` in runs/ that began last; None where there is none."""
    name = re.compile(re.escape(stem) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    found = ((name.fullmatch(path.name), path) for path in RUNS.glob("*"))
    runs = [(match[1], int(match[2] or 1), path) for match, path in found if match and is_begun(path)]
    return max(runs)[2] if runs else None


def _names(stem: str) -> Iterator[Path]:
    first = RUNS / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return chain([first], (first.with_name(f"{first.name}-{number}") for number in count(2)))


def _refused(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: this run folder cannot be made ({error.strerror}); give another by --output")


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove `folders`, each of which is in the next, up to the first that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
