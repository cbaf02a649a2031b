"""Optimizers as `worker` makes them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.optimizer import clip, without_compiler

STARTS = """
import sys
from hvd_train.comm.single import SingleCommunicator
from tests.bodies import training
config = training.configuration(data={"name": "digits", "target": None}, model={"name": "mlp", "target": None})
job = training.trainer(SingleCommunicator(), config)
job.run()
job.restore(job.snapshot())
print(*(name for name in ("torch._dynamo", "sympy", "sklearn", "scipy") if name in sys.modules))
"""


def test_a_run_imports_nothing_that_takes_seconds() -> None:
    ended = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "LBFGS", "Rprop"])
def test_its_steps_are_those_of_torch(name: str) -> None:
    after = []
    for make in (without_compiler, lambda build: build()):
        torch.manual_seed(0)
        model, x = nn.Linear(3, 2), torch.randn(8, 3)
        optimizer = make(partial(getattr(torch.optim, name), model.parameters(), lr=0.1))

        def closure(model: nn.Module = model, x: torch.Tensor = x, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        after.append([*losses, *model.weight.flatten().tolist()])
    assert after[0] == after[1]
    assert after[0][0] > after[0][2]


def test_a_differentiable_step_stays_differentiable() -> None:
    weight = torch.ones(3, requires_grad=True)
    w = weight.clone()
    optimizer = without_compiler(partial(torch.optim.SGD, [w], lr=0.1, differentiable=True))
    w.grad = 2 * weight
    optimizer.step()
    w.sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 0.8))


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_parts_are_clipped_as_torch_clips_the_whole(bad: float) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(4, 3)
    for p in whole.parameters():
        p.grad = torch.randn_like(p)
    whole.weight.grad[1, 2] = bad
    parts = [p.grad.clone() for p in whole.parameters()]
    square = torch.stack([g.square().sum().double() for g in parts]).sum()
    nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    for part, p in zip(parts, whole.parameters(), strict=True):
        clip([part], square, 0.5)
        torch.testing.assert_close(part, p.grad, equal_nan=True)
