"""Bytes, metric and latency of quantized exports: `python -m benchmarks.quantization`.

Trains a transformer on the text of this project and an mlp of 10 million parameters on digits, then
runs `ddl export` for each format and kind. benchmarks/README.md describes it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BYTES, POINTS = 0.30, 0.5
"""The goals: bytes over those of fp32, and points of accuracy that are lost."""
KINDS = {
    "torch": ("bf16", "int8-weights", "int8-dynamic"),
    "onnx": ("int8-weights", "int8-dynamic", "int8-static"),
    "safetensors": ("bf16", "int8-weights"),
}
TEXT = "text.txt"
TOKENS = {"name": "bpe", "vocabulary": 4096}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "model": {"name": "transformer", "layers": 4, "width": 256},
        "data": {"name": "text", "paths": [TEXT], "tokenizer": TOKENS, "length": 64, "batch_size": 16},
        "train": {"steps": 400, "eval_samples": 128, "metrics": ["accuracy"]},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "mlp": {
        "model": {"name": "mlp", "hidden": [3200, 3200]},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"epochs": 4},
        "optimizer": {"name": "adamw", "lr": 3e-4},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results of all exports")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each case of the latencies")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="ddl-quantization-") as folder:
        for name in options.models:
            run = _trained(Path(folder, name), MODELS[name])
            for to in options.formats:
                results += [{"model": name, **_exported(run, to, kind, options.seconds)} for kind in KINDS[to]]
                Console(width=140).print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _trained(folder: Path, config: dict[str, Any]) -> Path:
    """Train in `folder`, and return the folder of the run."""
    folder.mkdir()
    sources = sorted(path for part in ("cli", "docs", "hvd_train") for path in (ROOT / part).rglob("*.[mp][dy]"))
    (folder / TEXT).write_text("\n".join(path.read_text() for path in sources))
    (folder / "model.yaml").write_text(json.dumps(config))
    _ddl(folder, "run", "model.yaml", "--np", "1")
    return next((folder / "runs").iterdir())


def _exported(run: Path, to: str, kind: str, seconds: float) -> dict[str, Any]:
    """Return what `ddl export` says, with the original, fp32 and quantized rows by their role."""
    output = run.parent / f"{to}-{kind}"
    words = ("--to", to, "--quantize", kind, "--latency-seconds", str(seconds), "--output", str(output), "--json")
    result = json.loads(_ddl(run.parent, "export", str(run), *words))
    return result | dict(zip(("original", "fp32", "made"), result["rows"], strict=True))


def _ddl(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "cli.main", *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each export; latencies are ratios to fp32 in the same format."""
    made = Table("model", "to", "kind", "bytes / fp32", "metric", "before", "after", "goal", *_cases(results[0]))
    for result in results:
        fp32, quantized, metric = result["fp32"], result["made"], result["metric"]
        share = quantized["bytes"] / fp32["bytes"]
        before, after = result["original"]["metrics"][metric], quantized["metrics"][metric]
        words = (result["model"], result["format"], result["quantize"], f"{share:.3f}", metric)
        goal = _goal(result["quantize"], share, 100 * abs(after - before))
        made.add_row(*words, f"{before:.4f}", f"{after:.4f}", goal, *_ratios(fp32, quantized))
    return made


def _goal(kind: str, share: float, points: float) -> str:
    """Return whether the goals are met: the share of bytes is one of int8 only."""
    met = points <= POINTS and (share <= BYTES or not kind.startswith("int8"))
    return "met" if met else "missed"


def _cases(result: dict[str, Any]) -> list[str]:
    return [f"batch {one['batch']}, {one['threads']} threads" for one in result["fp32"]["latency"]]


def _ratios(fp32: dict[str, Any], quantized: dict[str, Any]) -> list[str]:
    pairs = zip(fp32["latency"], quantized["latency"], strict=True)
    ratios = [after["p50"] / before["p50"] for before, after in pairs]
    return [f"{ratio:.2f}" if math.isfinite(ratio) else "-" for ratio in ratios]


if __name__ == "__main__":
    main()
