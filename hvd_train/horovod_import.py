"""What `import horovod` gives a script: the real Horovod, or `hvd_train.torch` under its names; nothing is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

VERSION = "0.28.1"
"""The Horovod whose API this is."""

_OURS = {
    "horovod.torch": "hvd_train.torch",
    "horovod.common.elastic": "hvd_train.torch.elastic",
    "horovod.common.exceptions": "hvd_train.torch.exceptions",
    "horovod.common.process_sets": "hvd_train.torch.process_sets",
    "horovod.common.util": "hvd_train.torch.util",
}
_PACKAGES = {"horovod", "horovod.common"}
_OFFER = "this is ddl's own engine, which offers horovod.torch only"


def install(engine: str, *, say: bool) -> None:
    """From now on `import horovod` is for 'horovod' the real one, else ours; the first may `say` on stderr which it is."""
    sys.meta_path.insert(0, _Finder(engine, say))


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
        real = next((ours + name[len(theirs) :] for theirs, ours in _OURS.items() if _within(name, theirs)), None)
        if real is None and name not in _PACKAGES:
            return ModuleSpec(name, _Missing())
        return ModuleSpec(name, _Alias(real), is_package=real is None)

    def _say(self) -> None:
        if not self._silent:
            self._silent = True
            what = f"hvd_train.torch on MPI, with the API of Horovod {VERSION}" if self._ours else _installed()
            print(f"ddl: horovod is {what}", file=sys.stderr, flush=True)


class _Alias(Loader):
    """Another name of the module `real`; without one, a package of our own."""

    def __init__(self, real: str | None) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if self._real is not None:
            sys.modules[module.__name__] = importlib.import_module(self._real)
        elif module.__name__ == "horovod":
            module.__dict__.update(__version__=VERSION, run=_run)


class _Missing(Loader):
    """A part of Horovod that we do not have: found, so that the import says why it fails."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ImportError(f"{spec.name}: {_OFFER}; --engine horovod runs the real Horovod", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError("never created")


def _run(*_: object, **__: object) -> None:
    raise RuntimeError(f"horovod.run: {_OFFER}; start ranks with ddl run")


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _installed() -> str:
    found = PathFinder.find_spec("horovod")
    return f"the one installed at {found.origin}" if found else "not installed"
