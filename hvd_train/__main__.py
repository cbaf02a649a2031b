"""One rank: `python -m hvd_train DOCUMENT`, or `python -m hvd_train --script [OPTION ...] FILE|-m MODULE [ARG ...]`.

For a long DOCUMENT see `words`. The options are those of `script_options`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from hvd_train.config import words
from hvd_train.rank.affinity import set_threads, take_slots


def _imported() -> Callable[[str], int]:
    """Return the function that runs a rank.

    Importing torch makes a million objects that stay. Collections of garbage need not visit them.
    """
    gc.disable()
    from hvd_train.rank.worker import run_document

    gc.freeze()
    gc.enable()
    return run_document


def main() -> None:
    take_slots()
    set_threads()
    if sys.argv[1:2] == ["--script"]:
        from hvd_train.rank.script import run_script

        run_script(sys.argv[2:])
    else:
        run_document = _imported()
        sys.path.insert(0, os.getcwd())  # for targets of the user's own
        sys.exit(run_document(words.join(sys.argv[1], os.environ)))


if __name__ == "__main__":
    main()
