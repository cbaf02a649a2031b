"""`train.compile`: names stay, and a run resumes with and without it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.compiling import compile_
from hvd_train.errors import UserError
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.engines import threads

MODEL = {"target": "tests.single.test_compiling:stack"}


def stack() -> nn.Module:
    """Return a model of torch's own modules only, which torch does not compile in place."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def configuration(**train: Any) -> Any:
    return body.configuration(model=MODEL, train={"steps": 4, "epochs": None, "ema": 0.9, "precision": "fp32", **train})


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Compile with torch's compiler, but run the graphs without generating code; return calls of them."""
    calls: Counter[int] = Counter()

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            calls[len(graph.graph.nodes)] += 1
            return graph(*arguments)

        return run

    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_by(model, backend=backend))
    return calls


def test_a_compiled_run_has_the_names_and_values_of_another(graphs: Counter[int], tmp_path: Path) -> None:
    comm = SingleCommunicator()
    for name, first, then in (("plain", False, False), ("compiled", True, False), ("later", False, True)):
        folder = tmp_path / name / "checkpoints"
        body.trainer(comm, configuration(compile=first, steps=2), checkpoints=folder).run()
        job = body.trainer(comm, configuration(compile=then), checkpoints=folder)
        job.restore(checkpoint.load(tmp_path / name, comm, print))
        job.run()
    plain, *others = (
        checkpoint.read(tmp_path / n / "checkpoints/step-00000004") for n in ("plain", "compiled", "later")
    )
    assert sum(graphs.values()) >= 4
    for other in others:
        assert other.keys() == plain.keys()
        assert other["model.safetensors"] == plain["model.safetensors"]
        assert other["ema.safetensors"] == plain["ema.safetensors"]


def test_a_divided_model_is_refused() -> None:
    config = configuration(compile=True, ema=None)
    sections = config.model_copy(update={"parallel": config.parallel.model_copy(update={"pipeline": 2})})

    def told(comm: Communicator) -> None:
        with pytest.raises(UserError, match=r"train\.compile: parallel divides the model"):
            body.trainer(comm, sections)

    threads.run(2, told)


def test_a_host_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(UserError, match=r"train\.compile: it needs a C\+\+ compiler, and there is no '/nowhere/g\+\+'"):
        compile_(nn.Linear(1, 1), configuration())
