"""Largest difference of ONNX to torch, bytes and latency, for every model of the zoo.

    python -m benchmarks.exports [--steps 200]

Trains each model on digits (transformer: on a text) and exports it in every format and with every
quantizer that fits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from hvd_train.comm.engines.single import create as single
from hvd_train.errors import UserError
from hvd_train.rank.logs import Output
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import find_run
from hvd_train.trained.tasks.export import create
from tests.bodies import trained

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (trained.digits, {}),
    "mlp": (trained.digits, {"hidden": [128]}),
    "cnn": (trained.digits, {"channels": [32, 64]}),
    "resnet": (trained.digits, {"depth": 20}),
    "transformer": (trained.text, {"layers": 2, "width": 128}),
}
VARIANTS = [("torch", None), ("safetensors", None), ("onnx", None), ("onnx", "int8-dynamic")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case of the latencies")
    options = parser.parse_args()
    for name, (train, model) in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            sections = {"optimizer": {"name": "AdamW", "lr": 1e-3}, "train": {"steps": options.steps}}
            run = train(Path(place), model={"name": name, **model}, **sections)
            for to, quantize in VARIANTS:
                print(f"{name} {to} {quantize or ''}:", _export(run, Path(place), to, quantize, options.seconds))


def _export(run: Path, place: Path, to: str, quantize: str | None, seconds: float) -> str:
    folder = place / f"{to}-{quantize}"
    folder.mkdir()
    found = find_run(run)
    context = TaskContext(found.config, single(), found.checkpoint, folder, Output())
    try:
        result = create(to=to, quantize=quantize, seconds=seconds).run(context)
    except UserError as error:
        return str(error)
    row = result["rows"][-1]
    return (
        f"difference {row['difference']:.2e} of {row['magnitude']:.3g}, equal classes {row['agreement']:.4%}, "
        f"{row['bytes']} bytes, {result['samples']} samples; {result['verdict']}"
    )


if __name__ == "__main__":
    main()
