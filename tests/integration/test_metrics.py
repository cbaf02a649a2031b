"""Metrics of torchmetrics and the best checkpoint, from the YAML file to the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.ddl import SMALL, ddl, summary
from tests.integration.parts import needs

METRICS = """\
train:
  epochs: 2
  precision: fp64
  eval_samples: 101
  metrics: [f1score, {name: AUROC, average: none}, {name: Recall, top_k: 2, average: macro, key: top_2}, ConfusionMatrix]
  early_stop: {metric: F1Score, patience: 9}
checkpoint: {best: "auroc[3]", keep: 1}
"""


def test_best_checkpoint_of_three_ranks_has_the_same_metrics_on_one(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "m.yaml").write_text(SMALL[: SMALL.index("train:")] + METRICS)
    done = ddl("run", "--np", "3", "--output", "three", "m.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = summary(tmp_path / "three")["best"]
    lines = map(json.loads, (tmp_path / "three" / "metrics.jsonl").read_text().splitlines())
    (expected,) = (line for line in lines if line["kind"] == "eval" and line["step"] == best["step"])
    assert best == {
        "step": expected["step"], "metric": "auroc[3]", "value": expected["auroc"][3],
        "folder": f"checkpoints/step-{expected['step']:08d}",
    }  # fmt: skip
    assert sum(map(sum, expected["confusion_matrix"])) == 101
    assert "f1_score 0." in done.stdout + done.stderr

    mark = "three/checkpoints/best.json"
    resumed = (
        "run",
        "--np",
        "1",
        "--resume",
        mark,
        "--output",
        "one",
        "m.yaml",
        "optimizer.lr=0.0",
        "optimizer.momentum=0.0",
    )
    done = ddl(*resumed, f"train.steps={best['step'] + 1}", "train.epochs=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "one")["eval"]
    for name in ("loss", "accuracy", "f1_score", "top_2"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9)
    assert found["confusion_matrix"] == expected["confusion_matrix"]


def test_unknown_metric_is_refused_before_the_run_folder_exists(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "m.yaml").write_text(SMALL)
    done = ddl("run", "--np", "1", "--output", "out", "m.yaml", "train.early_stop.metric=acuracy", cwd=tmp_path)
    assert done.returncode == 2
    assert "train.early_stop.metric: no metric 'acuracy'; did you mean 'accuracy'" in done.stderr
    assert not (tmp_path / "out").exists()
