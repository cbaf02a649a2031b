"""One rank: `python -m hvd_train DOCUMENT`, or `python -m hvd_train --script [OPTION ...] FILE|-m MODULE [ARG ...]`.

For a long DOCUMENT see `words`. The options are those of `script_options`. `python -m hvd_train --pool
ENGINE RANKS` runs the documents that arrive on standard input (`rank.pool`).
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from types import ModuleType

from hvd_train.config import words
from hvd_train.rank.affinity import set_threads, take_slots


def _imported(module: str) -> ModuleType:
    """Import a module of `hvd_train.rank` that imports torch.

    Importing torch makes a million objects that stay. Collections of garbage need not visit them.
    """
    gc.disable()
    found = importlib.import_module(f"hvd_train.rank.{module}")
    gc.freeze()
    gc.enable()
    return found


def main() -> None:
    take_slots()
    set_threads()
    if sys.argv[1:2] == ["--script"]:
        from hvd_train.rank.script import run_script

        run_script(sys.argv[2:])
        return
    pools = sys.argv[1:2] == ["--pool"]
    found = _imported("pool" if pools else "worker")
    sys.path.insert(0, os.getcwd())  # for targets of the user's own
    if pools:
        sys.exit(found.run_pool(sys.argv[2], int(sys.argv[3])))
    sys.exit(found.run_document(words.join(sys.argv[1], os.environ)))


if __name__ == "__main__":
    main()
