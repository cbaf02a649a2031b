"""`data.json` of a run folder, which says how a row of the source becomes an input of the model.

It has the shape of the inputs, the number of outputs, the task, and the classes of the target in the
order of the outputs. For tables it also has each column as it was fitted on the training rows
(`hvd_train/data/tables/encoding.py`), for texts the tokenizer, for files how they are decoded.
`input` names the kind of new inputs (`hvd_train/trained/inputs`). Folders of older runs lack it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvd_train.data.base import Dataset
from hvd_train.data.fitted import classes_of
from hvd_train.text import strict_json

NAME = "data.json"


def save(folder: Path, data: Dataset) -> None:
    """Write `data.json` in the run folder; a resumed run keeps the file."""
    path = folder / NAME
    if not path.exists():
        path.write_text(strict_json.dumps(document(data), indent=1) + "\n", encoding="utf-8")


def document(data: Dataset) -> dict[str, Any]:
    """Return the content of `data.json`."""
    spec = data.spec
    described: dict[str, Any] = {"task": spec.task, "input_shape": list(spec.input_shape), "outputs": spec.outputs}
    if spec.task == "control":
        described |= {"agents": spec.agents, "policy_inputs": spec.policy_inputs}
    if spec.vocabularies:
        described["vocabularies"] = dict(spec.vocabularies)
    return {**data.preprocessing, **described, **({"input": dict(data.input)} if data.input else {})}


def class_names(data: Dataset) -> list[str] | None:
    """Return the names of the classes in the order of the outputs; None if the source knows none."""
    names = classes_of(data.preprocessing)
    return names and [str(name) for name in names]


def has_spectra(data: Dataset) -> bool:
    """Return True if the source makes spectra of sound files."""
    return data.preprocessing.get("files", {}).get("kind") in {"log_mel", "mfcc"}


def difference(folder: Path, data: Dataset) -> str | None:
    """Return the first difference to the data of the run in `folder`, as a sentence; None if equal.

    A difference is an error. The saved values cannot replace the new ones: a table that changed is
    also split in another way, so that rows of the training set would be held out.
    """
    try:
        saved = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        return f"--resume: {folder / NAME} is damaged: {error}"
    found = first_difference(saved, data)
    if found is None:
        return None
    return (
        f"--resume: {folder / NAME}: {found} now; the data or its options have changed: expected those of the run, or a "
        "new run without --resume"
    )


def first_difference(saved: dict[str, Any], data: Dataset) -> str | None:
    """Return where `data` differs first from `saved`, the content of a run's `data.json`; None if nowhere."""
    made = json.loads(strict_json.dumps(document(data)))
    for key in {"input", "target"} - saved.keys():  # an older version wrote the folder
        made.pop(key, None)
    for path, then, now in _differences("", saved, made):
        return f"{path} is {strict_json.dumps(then)} in the run and {strict_json.dumps(now)}"
    return None


def _differences(path: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for word in dict.fromkeys((*then, *now)):
            yield from _differences(f"{path}.{word}".lstrip("."), then.get(word), now.get(word))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (a, b) in enumerate(zip(then, now, strict=True)):
            yield from _differences(f"{path}[{_key(a, i)}]", a, b)
    elif not (_is_number(then) and _is_number(now) and math.isclose(then, now, rel_tol=1e-6)) and then != now:
        yield path, then, now


def _key(value: Any, position: int) -> Any:
    return value.get("name", position) if isinstance(value, dict) else position


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
