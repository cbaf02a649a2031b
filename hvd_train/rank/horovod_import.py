"""Decide what `import horovod` loads: the real Horovod, or `hvd_train.torch` under its names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from hvd_train.rank.horovod_run import run

VERSION = "0.28.1"
"""The version of Horovod whose API `hvd_train.torch` has."""

_OURS = {
    "horovod.torch": "hvd_train.torch",
    "horovod.common.elastic": "hvd_train.torch.elastic",
    "horovod.common.exceptions": "hvd_train.torch.exceptions",
    "horovod.common.process_sets": "hvd_train.torch.process_sets",
    "horovod.common.util": "hvd_train.torch.util",
    "horovod.data": "hvd_train.torch.data",
    "horovod.runner.util.threads": "hvd_train.torch.threads",
}
_PACKAGES = {"horovod", "horovod.common", "horovod.runner", "horovod.runner.util"}
_OFFER = "ddl's own engine provides horovod.torch, horovod.run and the modules that scripts use with them"


def install(engine: str = "mpi", *, say: bool = False) -> None:
    """Make `import horovod` load the real Horovod for the engine "horovod", else `hvd_train.torch`.

    With `say`, the first import prints on stderr which one it loads.
    """
    sys.meta_path.insert(0, _Finder(engine, say))


def ours(name: str) -> str | None:
    """Return the module of ddl that replaces Horovod's module `name`, or None."""
    return next((ours + name[len(theirs) :] for theirs, ours in _OURS.items() if _within(name, theirs)), None)


class _Finder(MetaPathFinder):
    def __init__(self, engine: str, say: bool) -> None:
        self._ours = engine != "horovod"
        self._silent = not say

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "horovod":
            return None
        self._say()
        if not self._ours:
            return None
        if name in _PACKAGES:
            return ModuleSpec(name, _Package(), is_package=True)
        real = ours(name)
        if real is None or importlib.util.find_spec(real) is None:
            return ModuleSpec(name, _Missing())
        return ModuleSpec(name, _Alias(real))

    def _say(self) -> None:
        if not self._silent:
            self._silent = True
            what = f"hvd_train.torch on MPI, with the API of Horovod {VERSION}" if self._ours else _installed()
            print(f"ddl: horovod is {what}", file=sys.stderr, flush=True)


class _Alias(Loader):
    """Loads the module `real` under another name."""

    def __init__(self, real: str) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._real)


class _Package(Loader):
    """Loads an empty package that holds the replaced modules."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "horovod":
            module.__dict__["__version__"] = VERSION
        if module.__name__ in {"horovod", "horovod.runner"}:
            module.__dict__["run"] = run


class _Missing(Loader):
    """Fails to load a part of Horovod that ddl lacks, with a message that says so."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ImportError(f"no {spec.name}: {_OFFER}; --engine horovod runs the real Horovod", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError("never created")


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _installed() -> str:
    found = PathFinder.find_spec("horovod")
    return f"the one installed at {found.origin}" if found else "not installed"
