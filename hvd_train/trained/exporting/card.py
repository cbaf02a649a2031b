"""The model card of an export: card.json, and the same as text in card.md. It imports no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvd_train.config.chosen import chosen
from hvd_train.rank.environment import versions
from hvd_train.saved.run import Run
from hvd_train.state.checkpoint_folder import number
from hvd_train.text import strict_json

_PACKAGES = ("ddl", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "safetensors", "torchao", "executorch")
_UNSTATED = "not stated"


def write(folder: Path, run: Run, result: Mapping[str, Any], licence: str | None) -> None:
    """Write card.json and card.md beside the files in `folder`, which the card lists."""
    card = document(run, result, _files(folder), licence)
    (folder / "card.json").write_text(strict_json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(markdown(card), encoding="utf-8")


def document(
    run: Run, result: Mapping[str, Any], files: Mapping[str, dict[str, Any]], licence: str | None
) -> dict[str, Any]:
    """Return the card of the export that `result` describes, as JSON."""
    config = chosen(run.config)
    trained = run.environment
    return {
        "name": run.folder.name,
        "licence": licence or _UNSTATED,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "format": result["format"],
        "model": {**config["model"], "parameters": result["parameters"], "zeros": result["zeros"]},
        "inputs": result["inputs"],
        "outputs": result["outputs"],
        **_agent(config, run),
        "data": {**config["data"], **{key: run.data.get(key) for key in ("task", "input_shape", "outputs")}},
        "training": {
            "run": str(run.folder),
            "checkpoint": run.checkpoint.name,
            "step": number(run.checkpoint),
            "strategy": run.config.sync.label,
            "ranks": trained.get("world_size"),
            "seed": run.config.seed,
            "optimizer": config["optimizer"],
            "versions": trained.get("versions", {}),
        },
        "evaluation": {
            "held_out_samples": result["samples"],
            "compared": result["compared"],
            "rows": result["rows"],
            "kept": result["kept"],
            "verdict": result["verdict"],
            "machine": result["machine"],
        },
        "export": {"quantize": result["quantize"], "prune": result["prune"], "versions": versions(_PACKAGES)},
        "files": dict(files),
        "loading": result["loading"],
    }


def markdown(card: Mapping[str, Any]) -> str:
    """Return the card as text."""
    training, evaluation = card["training"], card["evaluation"]
    head, *lines = table(evaluation["rows"], evaluation["compared"])
    return "\n".join(
        [
            f"# {card['name']}",
            "",
            evaluation["verdict"] + ".",
            "",
            *_list(
                {
                    "licence": card["licence"],
                    "format": card["format"],
                    "model": _inline(card["model"]),
                    "agent": _inline(card.get("agent", {})),
                    "data": _inline(card["data"]),
                    "strategy": f"{training['strategy']}, {training['ranks'] or 'unknown'} ranks, seed {training['seed']}",
                    "optimizer": _inline(training["optimizer"]),
                    "checkpoint": f"{training['checkpoint']} of {training['run']}",
                    "trained with": _inline(training["versions"]) or "unknown versions",
                    "exported with": _inline(card["export"]["versions"]),
                    "created": card["created"],
                }
            ),
            "",
            "## Files",
            "",
            *_table(["file", "bytes", "SHA-256"], [[n, f["bytes"], f["sha256"]] for n, f in card["files"].items()]),
            "",
            "## Load it",
            "",
            "```python",
            card["loading"],
            "```",
            "",
            *_table(
                ["tensor", "dtype", "shape"],
                [[v["name"], v["dtype"], _shape(v)] for v in (*card["inputs"], *card["outputs"])],
            ),
            "",
            "`data.json` says how a sample becomes the input.",
            "",
            "## Evaluation",
            "",
            f"{evaluation['held_out_samples']} held-out samples; {evaluation['machine']}.",
            "",
            *_table(head, lines),
            "",
        ]
    )


def table(rows: Sequence[Mapping[str, Any]], compared: str) -> list[list[str]]:
    """Return the lines of a table with a column for each model; the first line has their labels.

    `compared` says what the model chooses from: classes or actions.
    """
    figures = [_figures(row, compared) for row in rows]
    names = dict.fromkeys(name for of_model in figures for name in of_model)
    return [["", *(row["label"] for row in rows)], *([n, *(found.get(n, "") for found in figures)] for n in names)]


def _agent(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return what the card says of an agent, whose policy the file is; nothing without one."""
    if not config.get("agent"):
        return {}
    facts = run.data["agent"]
    return {"agent": {**config["agent"], "observation": facts["observed"], "actions": facts["actions"]}}


def _figures(row: Mapping[str, Any], compared: str) -> dict[str, str]:
    """Return what was measured of a model, as text by name."""
    numbers = {name: f"{value:.6g}" for name, value in row["metrics"].items() if isinstance(value, float | int)}
    times = {
        f"ms at batch {one['batch']}, {one['threads']} thread{'s' if one['threads'] > 1 else ''}: p50 / p95": (
            f"{1000 * one['p50']:.3g} / {1000 * one['p95']:.3g}"
        )
        for one in row["latency"]
    }
    optional = {
        "bytes": f"{row['bytes']:,}" if row["bytes"] else None,
        "largest difference": _difference(row),
        f"equal {compared}": None if row["agreement"] is None else f"{100 * row['agreement']:.6g} %",
    }
    return {**{name: text for name, text in optional.items() if text is not None}, **numbers, **times}


def _difference(row: Mapping[str, Any]) -> str | None:
    return None if row["difference"] is None else f"{row['difference']:.2g} (outputs to {row['magnitude']:.3g})"


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in paths}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _list(items: Mapping[str, str]) -> list[str]:
    return [f"- {key}: {value}" for key, value in items.items() if value]


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _shape(value: Mapping[str, Any]) -> str:
    return "(" + ", ".join(map(str, value["shape"])) + ")"


def _inline(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in values.items() if value not in (None, {}, []))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else strict_json.dumps(value)
