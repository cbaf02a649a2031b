"""`ddl data tokenize`: write the tokens of texts to a file, for the data source `tokens`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from hvd_train.errors import UserError, nearest


def command(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN",
            help="Text files, each a document; or JSON lines (.jsonl), each line a document. Either may be .gz.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Path to write to.", rich_help_panel=options.OUTPUT)
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="NAME|FILE|SECTION",
            help="bytes, bpe, a tokenizer.json, or a section such as '{name: bpe, vocabulary: 3000}'.",
            rich_help_panel=options.START,
        ),
    ] = "bytes",
    key: Annotated[
        str, typer.Option("--key", metavar="KEY", help="Key of the text in JSON lines.", rich_help_panel=options.START)
    ] = "text",
) -> None:
    """Write the tokens of texts to a file, and a JSON file beside it, for the data source tokens."""
    from hvd_train.config.document import Document
    from hvd_train.config.resolve import read_section
    from hvd_train.config.tokenize import TokenizeRequest
    from hvd_train.rank import internal
    from hvd_train.text import strict_json

    _check_files(inputs, output)
    document = Document({"inputs": [*map(str, inputs)], "output": str(output), "key": key}, "command line")
    document.override(f"tokenizer={_section(tokenizer)}")
    request = read_section(TokenizeRequest, document)
    words = internal.argv("hvd_train.data.tokenizing", strict_json.dumps_exact(request.model_dump(exclude_unset=True)))
    sys.exit(subprocess.run(words, check=False).returncode)


def _check_files(inputs: Sequence[Path], output: Path) -> None:
    for path in inputs:
        if not path.is_file():
            known = [f.name for f in path.parent.iterdir() if f.is_file()] if path.parent.is_dir() else []
            raise UserError(f"data tokenize: no file '{path}'{nearest(path.name, known)}")
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(
            f"--output: '{output}' cannot be written; expected a file name such as train.bin in an existing folder"
        )


def _section(text: str) -> str:
    """Return the section of a tokenizer as YAML: a file stands for the tokenizer in it."""
    from hvd_train.text import strict_json

    is_file = Path(text).is_file() or text.endswith(".json")
    return strict_json.dumps({"name": "file", "path": text}) if is_file else text
