"""Make and find run folders. Runs that begin in the same second get different folders."""

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


def new_run_folder(stem: str, output: Path | None, *, dry: bool, otherwise: str) -> Path:
    """Return the folder of a new run, `output` or runs/STEM-TIME, and make it unless `dry`.

    UserError if `output` exists; `otherwise` is the other remedy in its message.
    """
    if output is None:
        return free_run_folder(stem) if dry else claim_run_folder(stem)
    try:
        if output.exists():
            raise FileExistsError
        return output.absolute() if dry else make_folder(output)
    except FileExistsError:
        raise UserError(f"--output: {output} exists; give another folder, or {otherwise}") from None


def claim_run_folder(stem: str) -> Path:
    """Make runs/STEM-TIME and return its absolute path.

    If the name is taken, use STEM-TIME-2 and so on.

    If the folder is still empty when this process ends, it is removed.
    """
    for folder in _names(stem):
        with contextlib.suppress(FileExistsError):
            return make_folder(folder)
    raise AssertionError("names do not end")


def free_run_folder(stem: str) -> Path:
    """Return the folder that `claim_run_folder` would make; write nothing."""
    return next(folder for folder in _names(stem) if not folder.exists()).absolute()


def make_folder(folder: Path) -> Path:
    """Make `folder` as `claim_run_folder` does.

    FileExistsError if it exists, UserError if it cannot be made.
    """
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


def make_new_folder(folder: Path) -> Path:
    """Make `folder` as `make_folder` does; UserError if it exists."""
    try:
        return make_folder(folder)
    except FileExistsError:
        raise UserError(f"--output: {folder} exists; give another folder") from None


def is_begun(folder: Path) -> bool:
    """Return True if `folder` contains something."""
    return folder.is_dir() and any(folder.iterdir())


def newest_run(stem: str) -> Path | None:
    """Return the run of `stem` in runs/ that began last; None without one."""
    name = re.compile(re.escape(stem) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    matches = ((name.fullmatch(path.name), path) for path in RUNS.glob("*"))
    runs = [(match[1], int(match[2] or 1), path) for match, path in matches if match and is_begun(path)]
    return max(runs)[2] if runs else None


def _names(stem: str) -> Iterator[Path]:
    return timed(RUNS / stem)


def timed(path: Path) -> Iterator[Path]:
    """Yield PATH-TIME, PATH-TIME-2 and so on, without end."""
    first = path.with_name(f"{path.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return chain([first], (first.with_name(f"{first.name}-{number}") for number in count(2)))


def _refused(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot make this run folder ({error.strerror}); give another one with --output")


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the empty folders among `folders`; each lies in the next one."""
    with contextlib.suppress(OSError):
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
