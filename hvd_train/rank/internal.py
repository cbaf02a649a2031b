"""Run a module of ddl as a program: `python /path/to/hvd_train/rank/internal.py MODULE [WORD]...`.

`python -m MODULE` searches the working directory first, where a user's own `cli.py` would hide
ddl's `cli`. This file is run by its path, and finds the packages of ddl beside it. The working
directory is not on `sys.path`.
"""

from __future__ import annotations

import os
import sys

PROGRAM = os.path.abspath(__file__)
PACKAGE = os.path.dirname(os.path.dirname(PROGRAM))
"""The folder of `hvd_train`."""
ROOT = os.path.dirname(PACKAGE)
"""The folder that holds `cli` and `hvd_train`."""


def argv(module: str, *words: str) -> list[str]:
    """Return the command that runs `module` with `words` on any host with this environment."""
    return [sys.executable, PROGRAM, module, *words]


def become(module: str, *words: str) -> None:
    """Replace this process by `module` with `words`, which keeps the streams and gets the signals."""
    command = argv(module, *words)
    sys.stdout.flush()
    os.execv(command[0], command)


def main() -> None:
    """Run the module that `sys.argv[1]` names."""
    others = [path for path in sys.path if path != os.path.dirname(PROGRAM)]
    sys.path[:] = [ROOT, *others]
    import importlib
    import runpy

    for package in ("hvd_train", sys.argv[1].partition(".")[0]):
        importlib.import_module(package)
    sys.path[:] = others  # an imported package finds its modules by its own path
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
