"""The folder of a search: its journal, which Optuna reads and writes, and its lock.

The journal is append-only, so a search that was killed lost no trial that it had recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.search import records
from cli.search.records import Record
from hvd_train.errors import UserError, install_remedy

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
NAME = "ddl"
TRIALS = "trials"


def require_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(f"ddl tune needs Optuna, which is not installed; {install_remedy('tune')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal:
    """The study of a search, whose trials go by their numbers."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage) -> None:
        self.study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(NAME)

    def adopt(self, number: int) -> optuna.Trial:
        """Return the running trial `number` of an earlier process, which keeps the parameters that it has."""
        import optuna

        return optuna.trial.Trial(self.study, self._id(number))

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        """Return the trial as it is now; do not change it."""
        return self._storage.get_trial(self._id(number))

    def record(self, number: int) -> Record:
        return records.record(self.trial(number))

    def note(self, number: int, name: str, value: Any) -> None:
        """Set a user attribute of a trial that runs."""
        self._storage.set_trial_user_attr(self._id(number), name, value)

    def report(self, number: int, evaluation: int, value: float) -> None:
        """Set an intermediate value, also in place of an earlier one."""
        self._storage.set_trial_intermediate_value(self._id(number), evaluation, value)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def create(
    folder: Path, modes: Sequence[str], attributes: Mapping[str, Any], sampler: optuna.samplers.BaseSampler
) -> Journal:
    """Create the study of a new search, with `attributes` of the study."""
    from optuna.study import StudyDirection, create_study

    directions = [StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in modes]
    storage = _storage(folder)
    study = create_study(study_name=NAME, storage=storage, directions=directions, sampler=sampler)
    for name, value in attributes.items():
        study.set_user_attr(name, value)
    return Journal(study, storage)


def require(folder: Path) -> None:
    """Raise UserError if `folder` has no search."""
    if not (folder / JOURNAL).is_file():
        raise UserError(f"{folder}: no search in this folder; expected a folder that ddl tune wrote")


def journal(folder: Path) -> Journal:
    """Return the study of an earlier search in `folder`; UserError if it has none."""
    require_optuna()
    import optuna

    require(folder)
    storage = _storage(folder)
    try:
        return Journal(optuna.load_study(study_name=NAME, storage=storage), storage)
    except KeyError:
        raise UserError(f"{folder / JOURNAL}: no study of ddl in it; start a new search") from None


def load(folder: Path) -> optuna.Study:
    """Return the study of the search in `folder`, to read it; UserError if it has none."""
    return journal(folder).study


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one search at a time write to `folder`; UserError names the process that does.

    The kernel releases the lock at the end of the process, however it ends. What a process that was
    killed left half-written in the journal is removed, and so is the journal's own lock.
    """
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder}: {file.read().strip() or 'another process'} searches in this folder; wait for its end, "
                "or give another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _mend(folder / JOURNAL)
        yield


def _mend(journal: Path) -> None:
    """Remove the incomplete last line of the journal, and a lock of the journal that nobody holds."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()
    if not journal.is_file():
        return
    with open(journal, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
