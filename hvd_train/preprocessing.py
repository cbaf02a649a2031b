"""`data.json` of a run folder: what turns a row of the source into an input of the model.

It holds the shape of inputs, the number of outputs, the task, and for tables each column as it was fitted on the training
rows (`hvd_train/data/_columns.py`) and the classes of the target in the order of outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvd_train import strict_json
from hvd_train.data.base import Dataset

NAME = "data.json"


def save(folder: Path, data: Dataset) -> None:
    """Write `data.json` in the run folder; a run that goes on keeps what it was fitted to."""
    path = folder / NAME
    if not path.exists():
        path.write_text(strict_json.dumps(document(data), indent=1) + "\n", encoding="utf-8")


def document(data: Dataset) -> dict[str, Any]:
    """What `data.json` holds."""
    spec = data.spec
    described = {"task": spec.task, "input_shape": list(spec.input_shape), "outputs": spec.outputs}
    return {**data.preprocessing, **described}


def difference(folder: Path, data: Dataset) -> str | None:
    """What `data` does otherwise than the run in `folder`, as a sentence; None where inputs mean the same.

    Parameters were trained on inputs of one meaning, and a table that has changed is split otherwise: rows that were trained on
    would be held out. So a difference is an error, and the saved values are not used in place of new ones.
    """
    try:
        saved = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        return f"--resume: {folder / NAME} is damaged: {error}"
    for path, then, now in _differences("", saved, json.loads(strict_json.dumps(document(data)))):
        return (
            f"--resume: {folder / NAME}: {path} is {strict_json.dumps(then)} in the run and {strict_json.dumps(now)} now; "
            "the data or its options have changed: expected those of the run, or a new run without --resume"
        )
    return None


def _differences(path: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for word in dict.fromkeys((*then, *now)):
            yield from _differences(f"{path}.{word}".lstrip("."), then.get(word), now.get(word))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (a, b) in enumerate(zip(then, now, strict=True)):
            yield from _differences(f"{path}[{_called(a, i)}]", a, b)
    elif not (_is_number(then) and _is_number(now) and math.isclose(then, now, rel_tol=1e-6)) and then != now:
        yield path, then, now


def _called(value: Any, position: int) -> Any:
    return value.get("name", position) if isinstance(value, dict) else position


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
