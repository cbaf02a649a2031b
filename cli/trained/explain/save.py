"""The files of a report: report.json, explain.png, maps.npz, and explain.html for texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cli.trained.explain import report
from cli.trained.explain.page import page
from cli.trained.explain.picture import picture

MAPS = "maps.npz"
"""The arrays that rank 0 wrote: `SAMPLE.FIELD.map` and `SAMPLE.FIELD.input`."""


def save(heading: str, found: Mapping[str, Any], folder: Path) -> None:
    """Write the files to `folder`, where `maps.npz` is, unless all fields are tables and texts."""
    (folder / "report.json").write_text(report.json(found), encoding="utf-8")
    maps = folder / MAPS
    arrays = np.load(maps, allow_pickle=False) if maps.exists() else {}
    picture(heading, found, arrays).savefig(folder / "explain.png")
    if found["samples"][0]["fields"][0]["kind"] == "text":
        (folder / "explain.html").write_text(page(heading, found), encoding="utf-8")
