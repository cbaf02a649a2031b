"""One rank: `python -m hvd_train DOCUMENT`, or `python -m hvd_train --script [--engine=NAME] FILE|-m MODULE [ARG ...]`."""

from __future__ import annotations

import os
import sys

from hvd_train.affinity import set_threads


def main() -> None:
    set_threads()
    if sys.argv[1:2] == ["--script"]:
        from hvd_train.script import run_script

        run_script(sys.argv[2:])
    else:
        from hvd_train.worker import run_document

        sys.path.insert(0, os.getcwd())  # for targets of the user's own
        sys.exit(run_document(sys.argv[1]))


if __name__ == "__main__":
    main()
