"""How fast the sources of data deliver batches: `python -m benchmarks.sources`.

It writes samples of each kind into a temporary folder, runs `ddl data show --json` on them, and
prints the table of docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
WORKERS = [0, 1, 2, 4]
Data = dict[str, Any]
"""A `data` section without its batch size."""


def npz(folder: Path) -> Data:
    """28 x 28 float32, uncompressed and therefore mapped."""
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.random((60_000, 1, 28, 28), dtype=np.float32), y=rng.integers(0, 10, 60_000))
    return {"name": "npz", "path": "x.npz"}


def csv(folder: Path) -> Data:
    """20 columns of numbers."""
    rows = np.random.default_rng(0).random((50_000, 20))
    np.savetxt(folder / "t.csv", rows, "%.6f", ",", header=",".join(f"c{i}" for i in range(20)), comments="")
    return {"name": "csv", "path": "t.csv", "target": "c0"}


def text(folder: Path) -> Data:
    """Windows of 256 bytes."""
    (folder / "t.txt").write_text((ROOT / "README.md").read_text() * 3000)
    return {"name": "text", "paths": ["t.txt"], "length": 256}


def tokens(folder: Path) -> Data:
    """Windows of 1024 uint16."""
    np.random.default_rng(0).integers(0, 50_000, 20_000_000, np.uint16).tofile(folder / "t.bin")
    return {"name": "tokens", "paths": ["t.bin"], "length": 1024, "vocabulary": 50_257}


def jsonl(folder: Path) -> Data:
    """Objects with a text of 200 to 400 characters, as bytes, padded."""
    words = (ROOT / "README.md").read_text().split()
    lines = [{"text": " ".join(words[i % 500 : i % 500 + 40]), "label": i % 2} for i in range(20_000)]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "name": "jsonl",
        "path": "t.jsonl",
        "inputs": "text",
        "target": "label",
        "tokenizer": "bytes",
        "collate": "pad",
    }


def images(folder: Path) -> Data:
    """JPEG files of 320 x 240, cropped to 224 x 224."""
    jpegs(folder / "images")
    return {"name": "images", "path": "images", "size": 224}


def audio(folder: Path) -> Data:
    """WAV files of one second at 16 kHz, as log-mel spectra."""
    import soundfile

    rng = np.random.default_rng(0)
    for i in range(400):
        file = folder / "sounds" / str(i % 4) / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, rng.normal(0, 0.1, 16_000), 16_000)
    return {"name": "audio", "path": "sounds", "features": "log_mel"}


def webdataset(folder: Path) -> Data:
    """The same JPEG files in eight tar shards."""
    for i, file in enumerate(jpegs(folder / "files")):
        with tarfile.open(folder / f"s-{i % 8}.tar", "a") as shard:
            shard.add(file, f"{i:05}.jpg")
            (folder / "class").write_text(file.parent.name)
            shard.add(folder / "class", f"{i:05}.cls")
    return {
        "name": "webdataset",
        "shards": "s-*.tar",
        "inputs": "jpg",
        "target": "cls",
        "classes": 4,
        "image_size": [224, 224],
    }


def jpegs(folder: Path) -> list[Path]:
    """Write 400 files in four classes: noise of low frequency, which compresses as photos do."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for i in range(400):
        file = folder / str(i % 4) / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files


MAKERS: dict[str, Callable[[Path], Data]] = {
    maker.__name__: maker for maker in (npz, csv, text, tokens, jsonl, images, audio, webdataset)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__)
    parser.add_argument("sources", nargs="*", metavar="source", help=f"one of {', '.join(MAKERS)}; by default all")
    options = parser.parse_args()
    print(f"| source | samples | {' | '.join(f'workers: {n}' for n in WORKERS)} |")
    print(f"|---|---|{'---|' * len(WORKERS)}", flush=True)
    for name in options.sources or MAKERS:
        with tempfile.TemporaryDirectory(prefix="ddl-sources-") as scratch:
            rates = measure(MAKERS[name](Path(scratch)), Path(scratch))
        what = (MAKERS[name].__doc__ or "").rstrip(".")
        cells = [f"{r['samples_per_second']:,.0f} ({r['bytes_per_second'] / 1e6:,.0f} MB/s)" for r in rates]
        print(f"| `{name}` | {what} | {' | '.join(cells)} |", flush=True)


def measure(data: Data, folder: Path) -> list[dict[str, float]]:
    """Return the rate for each number of workers."""
    (folder / "model.yaml").write_text(json.dumps({"model": "mlp", "data": {**data, "batch_size": 32}}))
    told = ["data", "show", "model.yaml", "--np", "1", "--json", "--workers", ",".join(map(str, WORKERS))]
    done = subprocess.run(
        [sys.executable, "-m", "cli", *told],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: list[dict[str, float]] = json.loads(done.stdout)["rates"]
    return found


if __name__ == "__main__":
    main()
