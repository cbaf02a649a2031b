"""`ddl run` with a fold: two ranks train and hold out what one does, and `ddl evaluate` measures the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration.ddl import ddl, summary
from tests.integration.parts import needs

ROWS, FOLDS = 60, 4
YAML = """\
model: {name: mlp, hidden: [4]}
data: {name: csv, path: t.csv, target: label, standardise: true}
optimizer: {name: SGD, lr: 0.05}
train: {epochs: 2, precision: fp64}
"""


def test_ranks_and_commands_agree_on_the_fold(tmp_path: Path) -> None:
    needs("mpirun")
    x = np.random.default_rng(0).normal(size=ROWS)
    rows = [f"{value:.4f},{'yes' if value > 0 else 'no'}" for value in x]
    (tmp_path / "t.csv").write_text("\n".join(["a,label", *rows]) + "\n")
    (tmp_path / "m.yaml").write_text(YAML)
    losses, encodings = [], []
    for ranks in (1, 2):
        fold = (f"data.fold.folds={FOLDS}", "data.fold.index=2", f"data.batch_size={8 // ranks}")
        done = ddl("run", "--np", str(ranks), "--output", f"np-{ranks}", "m.yaml", *fold, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append(summary(tmp_path / f"np-{ranks}")["eval"]["loss"])
        encodings.append(json.loads((tmp_path / f"np-{ranks}" / "data.json").read_text())["columns"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert encodings[0] == encodings[1]

    done = ddl("evaluate", "np-2", "--output", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["samples"] == ROWS / FOLDS
    assert result["metrics"]["loss"] == pytest.approx(losses[1], rel=1e-6)
