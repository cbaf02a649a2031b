"""What the ending of a file of records says about it."""

from __future__ import annotations

from pathlib import Path

ARROW = (".parquet", ".arrow", ".feather", ".ipc")
LINES = (".jsonl", ".ndjson", ".json")
"""One JSON object on each line."""
COMMAS = (".csv", ".tsv", ".tab")


def suffix(path: str | Path) -> str:
    """Return the ending of a file in lower case, without that of gzip."""
    plain = Path(str(path).lower())
    return Path(plain.stem).suffix if plain.suffix == ".gz" else plain.suffix


def delimiter_of(path: str | Path) -> str:
    """Return the character between two values of a text file: a tabulator in .tsv and .tab, else a comma."""
    return "\t" if suffix(path) in COMMAS[1:] else ","
