"""`ddl data tokenize`, and a run on the tokens that it writes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.ddl import ddl

MODEL = """\
model: {name: transformer, width: 16, layers: 1, heads: 2}
data: {name: tokens, paths: [train.bin], length: 16, batch_size: 4}
train: {steps: 3}
"""


def test_a_run_trains_on_the_tokens_of_texts(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    (tmp_path / "model.yaml").write_text(MODEL)
    tokenizer = "{name: bpe, vocabulary: 270}"
    done = ddl("data", "tokenize", "train.txt", "--output", "train.bin", "--tokenizer", tokenizer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train.bin written: ")
    run = ddl("run", "--np", "2", "--output", "out", "model.yaml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    described = json.loads((tmp_path / "out" / "data.json").read_text())
    assert described["outputs"] == 270
    assert described["tokenizer"]["name"] == "bpe"
