"""The folder of the results of a command, which is complete or does not exist."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.runs.folder import make_new_folder, timed
from hvd_train.errors import UserError
from hvd_train.saved.run import Run


@contextmanager
def result_folder(run: Run, command: str, output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield a new folder to write to, and the path that it gets at the end of the block.

    The path is `output`, by default RUN/COMMAND-TIME. If the block fails, the folder is removed.
    UserError if `output` exists.
    """
    final = _free(run, command) if output is None else output.absolute()
    if final.exists():
        raise UserError(f"--output: {final} exists; give another folder")
    draft = final.with_name(f".{final.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    make_new_folder(draft)
    try:
        yield draft, final
        draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _free(run: Run, command: str) -> Path:
    return next(path for path in timed(run.folder / command) if not path.exists())
