"""Write predictions, for `ddl predict`.

Usage: `python -m hvd_train.trained.predicting REQUEST`, where REQUEST is a `Request` as JSON.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hvd_train.errors import ExitCode, UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.generating.search import Search
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.predicting.request import Request
from hvd_train.trained.predicting.stream import predict


def main() -> None:
    """Do what the request in argv asks for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which removes what is incomplete
    # The other pools of pyarrow keep the memory of blocks: 130 MB more after a million rows.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    request = Request.from_text(sys.argv[1])
    try:
        run = find_run(Path(request.run), request.overrides)
        sys.path[:0] = run.search_path  # for targets of the user's own
        search = Search(**request.search)
        predictor = Predictor(load_model(run), top=request.top, tokens=request.tokens, search=search)
        count = predict(predictor, request)
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _say(f"{error.filename or request.output or 'stdout'}: {error.strerror}")
        sys.exit(ExitCode.FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)
    for text in predictor.input.warnings():
        _say(f"warning: {text}")
    if request.output is not None:
        _say(f"{request.output} written: {count:,} predictions")


def _say(text: str) -> None:
    print(f"ddl: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
