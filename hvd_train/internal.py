"""Starts modules of ddl as programs: `python /path/to/hvd_train/internal.py MODULE [WORD]...`.

`python -m MODULE` looks into the user's folder first, where a `cli.py` of the user's own would hide ours. This file is
started by its path, and finds the packages of ddl that it lies beside. The user's folder is not on `sys.path`.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(HERE, os.path.basename(__file__))


def argv(module: str, *words: str) -> list[str]:
    """The command that runs `module` with `words`, on this host or on another with the same environment."""
    return [sys.executable, PROGRAM, module, *words]


def main() -> None:
    """Run the module that `sys.argv` names in place of this file."""
    others = [path for path in sys.path if path != HERE]  # where `hvd_train.torch` would be taken for torch
    sys.path[:] = [os.path.dirname(HERE), *others]
    import importlib
    import runpy

    for package in ("hvd_train", sys.argv[1].partition(".")[0]):
        importlib.import_module(package)
    sys.path[:] = others  # a package that has been imported finds its modules by itself
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
