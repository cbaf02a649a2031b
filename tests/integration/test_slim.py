"""`compress_model` from the YAML file to the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.integration.ddl import SMALL, ddl, summary
from tests.integration.parts import needs

COMPRESSED = """\
compress_model:
  init: dense
  low_rank: {rank: 6, layers: ["1"]}
  prune: {sparsity: 0.5, schedule: {end: 60, every: 10}}
  quantize: qat
  distill: {teacher: dense, alpha: 0.5}
"""


def test_a_trained_model_becomes_smaller_on_two_ranks_and_a_wrong_teacher_leaves_nothing(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "dense.yaml").write_text(SMALL)
    (tmp_path / "small.yaml").write_text(SMALL + COMPRESSED)
    done = ddl("run", "--np", "1", "--output", "dense", "dense.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = ddl("run", "--np", "2", "--output", "small", "small.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    weights, low_rank = 64 * 6 + 6 * 32 + 32 * 10, 64 * 32 - 64 * 6 - 6 * 32
    found = summary(tmp_path / "small")["compress_model"]
    assert found == {
        "parameters_before": 64 * 32 + 32 + 32 * 10 + 10, "parameters": 64 * 32 + 32 + 32 * 10 + 10 - low_rank,
        "nonzero": weights - weights // 2 + 42, "sparsity": 0.5,
    }  # fmt: skip
    (folder,) = sorted((tmp_path / "small" / "checkpoints").glob("step-*"))[-1:]
    saved = load_file(folder / "model.safetensors")
    assert sum(int((w == 0).sum()) for name, w in saved.items() if name.endswith("weight")) == weights // 2
    assert saved["1.0.inputs.high"] == pytest.approx(1.0, abs=0.01)
    lines = [json.loads(line) for line in (tmp_path / "small" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert trained[0]["loss_task"] + trained[0]["loss_teacher"] == pytest.approx(trained[0]["loss"])
    assert [line["sparsity"] for line in lines if line["kind"] == "eval"][-1] == 0.5

    done = ddl(
        "run", "--np", "2", "--output", "none", "small.yaml", "compress_model.distill.teacher=dence", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "dence: no such folder; expected the run folder of a YAML file" in done.stderr
    assert not (tmp_path / "none").exists()
