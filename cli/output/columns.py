"""Format rows of texts as aligned columns."""

from __future__ import annotations

import io
from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned lines of any width; the first row has the names."""
    from rich.table import Table

    from hvd_train.text.display import console
    from hvd_train.text.names import printable

    names, *others = rows
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(printable(name), no_wrap=True)
    for row in others:
        table.add_row(*map(printable, row))
    file = io.StringIO()
    console(file=file, width=10_000).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
