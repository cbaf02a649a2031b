"""The names of the columns of new rows, compared with the columns that a run takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hvd_train.errors import UserError, nearest


def lacks(name: str, names: Iterable[str]) -> str:
    """Return the sentence for rows with the columns `names` that lack the input `name`."""
    return f"no column '{name}', which is an input of the run{nearest(name, names)}"


def check(where: str, names: Sequence[str], inputs: Iterable[str], keep: Sequence[str]) -> None:
    """Raise UserError if the table `where` with the columns `names` lacks an input, or a column to keep."""
    missing = next((name for name in [*inputs, *keep] if name not in names), None)
    if missing is None:
        return
    if missing in keep:
        raise UserError(f"{where}: --keep: no column '{missing}'{nearest(missing, names)}")
    raise UserError(f"{where}: {lacks(missing, names)}")
