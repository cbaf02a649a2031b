"""What a job needs on every host, from its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.launch.target import Target
from cli.remote.preflight.check import Needs
from hvd_train.config.fetched import place

if TYPE_CHECKING:
    from hvd_train.config.schema import Config


def needs(target: Target, folder: Path) -> Needs:
    """Return what a job that starts in `folder` needs on every host.

    A script needs its file. A YAML run needs the modules in `folder` and the data files that its
    configuration names.
    """
    if target.config is None:
        return Needs(folder, (str(target.script),) if target.script else ())
    data = target.config.data.model_dump(exclude_unset=True)
    return Needs(folder, tuple(_modules(target.config, folder)), tuple(_data(data, folder)))


def _modules(config: Config, folder: Path) -> Iterator[str]:
    """Yield the files in `folder` of each `target: module:callable`.

    Installed packages are compared by version.
    """
    from hvd_train.config.resolve import target_sections

    for _, target in target_sections(config):
        stem = folder.joinpath(*target.partition(":")[0].split("."))
        yield from (str(path) for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file())


def _data(options: Any, folder: Path) -> Iterator[str]:
    """Yield the texts in data `options` that are paths: relative to `folder`, absolute, or of a fetched data set."""
    if isinstance(options, Mapping):
        options = [value for word, value in options.items() if word != "name"]
    if isinstance(options, list | tuple):
        for value in options:
            yield from _data(value, folder)
    elif isinstance(options, str) and (path := folder / place(options)).exists():
        yield str(path)
