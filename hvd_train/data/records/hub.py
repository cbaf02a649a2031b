"""Open data sets of the library `datasets`: a folder, files, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_train.config.fetched import place
from hvd_train.data.files import import_extra
from hvd_train.data.hub import endpoint, reaches_hub
from hvd_train.data.memory.node import Node
from hvd_train.data.records.paths import find_files
from hvd_train.errors import UserError, nearest

READERS = {
    ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".gz": "json", ".csv": "csv", ".arrow": "arrow"
}  # fmt: skip
"""Reader of the library for each ending of a file."""


def open_split(node: Node, path: str | list[str], subset: str | None, split: str, *, streaming: bool) -> Any:
    """Return the `Dataset`, or the `IterableDataset` if `streaming`, of one split; collective.

    The library writes files that are no Arrow files into its cache as Arrow files, which all ranks
    map into memory. The first rank of a host does so. Raise UserError for data that cannot be read,
    and for a name that is on the hub while the hub cannot be reached.
    """
    if node.rank == 0:
        opened = _open(path, subset, split, streaming)
        node.gather(None)
        return opened
    node.gather(None)
    return _open(path, subset, split, streaming)


def _open(path: str | list[str], subset: str | None, split: str, streaming: bool) -> Any:
    datasets = import_extra("datasets", "huggingface")
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    folder = place(path) if isinstance(path, str) else None
    try:
        if folder is not None and folder.is_dir():
            _go_offline(datasets)
            saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
            if saved:
                return _saved(datasets, folder, split, streaming)
            return datasets.load_dataset(str(folder), subset, split=split, streaming=streaming)
        if folder is None or _is_pattern(str(path)):
            _go_offline(datasets)
            files = find_files(path, "path")
            return datasets.load_dataset(
                _reader(files), data_files={split: list(map(str, files))}, split=split, streaming=streaming
            )
        return _of_hub(datasets, str(path), subset, split, streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises what its readers and its network code meet
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(f"data.path: '{path}' cannot be read, split '{split}': {reason}") from error


def _is_pattern(path: str) -> bool:
    return Path(path).suffix in READERS or any(sign in path for sign in "*?[{")


def _reader(files: list[Path]) -> str:
    endings = {file.suffix for file in files}
    if len(endings) > 1 or not endings <= set(READERS):
        raise UserError(
            f"data.path: files with the endings {', '.join(sorted(endings))}, expected one of {', '.join(READERS)}"
        )
    return READERS[endings.pop()]


def _saved(datasets: Any, folder: Path, split: str, streaming: bool) -> Any:
    """Return a split of what `save_to_disk` wrote. A single data set is the split `train`."""
    made = datasets.load_from_disk(str(folder))
    named = made if isinstance(made, dict) else {"train": made}
    if split not in named:
        raise UserError(f"data.split: no '{split}' in '{folder}'{nearest(split, named)}")
    return named[split].to_iterable_dataset(len(named[split].cache_files) or 1) if streaming else named[split]


def _of_hub(datasets: Any, path: str, subset: str | None, split: str, streaming: bool) -> Any:
    reached = reaches_hub()
    if not reached:
        _go_offline(datasets)  # the library still finds what it downloaded before
    try:
        return datasets.load_dataset(path, subset, split=split, streaming=streaming)
    except (ConnectionError, FileNotFoundError) as error:
        if reached and not isinstance(error, FileNotFoundError):
            raise
        parent = Path(path).expanduser().parent
        known = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        hint = nearest(Path(path).name, known).partition(" (choices")[0]
        where = f"{endpoint()} has no such data set" if reached else f"{endpoint()} cannot be reached from this host"
        raise UserError(f"data.path: no local folder or file '{path}'{hint}, and {where}") from error


def _go_offline(datasets: Any) -> None:
    """Let the library send nothing: it counts the use of local files on the hub too."""
    import_extra("huggingface_hub", "huggingface").constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
