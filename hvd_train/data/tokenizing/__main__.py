"""Write the tokens of texts to a file, for `ddl data tokenize`.

Usage: `python -m hvd_train.data.tokenizing REQUEST`, where REQUEST is a `TokenizeRequest` as JSON.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.tokenize import TokenizeRequest
from hvd_train.data.tokenizing import sidecar
from hvd_train.data.tokenizing.base import Tokenizer, describe
from hvd_train.data.tokenizing.inputs import Inputs
from hvd_train.data.tokenizing.progress import Progress
from hvd_train.data.tokenizing.sidecar import Sidecar
from hvd_train.data.tokenizing.texts import Document as Text
from hvd_train.data.tokenizing.texts import dtype_of, encoded
from hvd_train.errors import ExitCode, UserError
from hvd_train.text import strict_json
from hvd_train.text.drafts import complete


class Counted:
    """Passes documents on, and counts them and their bytes in UTF-8."""

    def __init__(self, documents: Iterator[Text]) -> None:
        self._documents = documents
        self.documents = self.bytes = 0

    def __iter__(self) -> Iterator[Text]:
        for document in self._documents:
            self.documents += 1
            yield self._pieces(document)

    def _pieces(self, document: Text) -> Iterator[str]:
        for piece in document:
            self.bytes += len(piece.encode())
            yield piece


def tokenize(request: TokenizeRequest) -> str:
    """Write the tokens and the sidecar; return a sentence about them.

    Memory does not grow with the texts. A file appears under its name when it is complete. Raise
    UserError for bad input, and if the output exists.
    """
    inputs, output = Inputs([Path(path) for path in request.inputs], request.key), Path(request.output)
    learn = partial(inputs.texts, Progress(f"{request.tokenizer.label} learns from the text", inputs.size))
    tokenizer: Tokenizer = request.tokenizer.create(learn, expected=Tokenizer)
    read = Counted(inputs.documents(Progress("encoded", inputs.size)))
    with complete(output) as file:
        count = 0
        for tokens in encoded(read, tokenizer):
            file.write(tokens.data)
            count += len(tokens)
        if count == 0:
            raise UserError(f"{', '.join(request.inputs)}: no text, so there are no tokens")
        dtype = np.dtype(dtype_of(tokenizer.vocabulary)).name
        beside = Sidecar(dtype, tokenizer.vocabulary, count, describe(request.tokenizer.label, tokenizer))
        with complete(sidecar.beside(output)) as description:
            description.write(strict_json.dumps(asdict(beside)).encode() + b"\n")
    return (
        f"{output} written: {count:,} tokens in {dtype}, {read.bytes / count:.3g} bytes per token, vocabulary of "
        f"{tokenizer.vocabulary:,}, {read.documents:,} document{'s' * (read.documents != 1)}"
    )


def main() -> None:
    """Do what the request in argv asks for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which removes what is incomplete
    sys.path.insert(0, os.getcwd())  # for targets of the user's own
    values = strict_json.loads_exact(sys.argv[1])
    try:
        print(tokenize(read_section(TokenizeRequest, Document(values, "command line"))))
    except UserError as error:
        print(f"ddl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"ddl: {error.filename or values['output']}: {error.strerror}", file=sys.stderr)
        sys.exit(ExitCode.FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
