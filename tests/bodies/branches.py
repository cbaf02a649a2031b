"""Random models whose branches only some ranks use, and the result of one process."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import SyncStrategy


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A random model: sizes, dtypes, tied layers, and the branches of each rank and step."""
    layers = draw(st.integers(1, 5))
    return {
        "sizes": draw(st.lists(st.integers(1, 40), min_size=layers, max_size=layers)),
        "half": draw(st.lists(st.booleans(), min_size=layers, max_size=layers)),
        "frozen": draw(st.lists(st.booleans(), min_size=layers, max_size=layers).filter(lambda f: not all(f))),
        "thaw": draw(st.integers(0, 3)),
        "sharded": draw(st.booleans()),
        "fusion": draw(st.sampled_from([0, 64, 4096])),
        "used": draw(st.lists(st.lists(st.booleans(), min_size=layers, max_size=layers), min_size=9, max_size=9)),
        "size": draw(st.integers(2, 3)),
        "nodes": draw(st.lists(st.integers(0, 2), min_size=9, max_size=9)),
        "optimizer": draw(st.sampled_from(["SGD", "AdamW", "Adagrad"])),
    }


class Branches(nn.Module):
    """Layers of which a forward pass uses some; first and last share weights."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        kinds = [torch.float32 if half else torch.float64 for half in plan["half"]]
        rows = zip(plan["sizes"], kinds, plan["frozen"], strict=True)
        self.layers = nn.ParameterList(
            nn.Parameter(torch.randn(n, generator=generator).to(kind), requires_grad=not frozen)
            for n, kind, frozen in rows
        )

    def thaw(self) -> list[nn.Parameter]:
        """Train all parameters from now on; return those that were frozen."""
        frozen = [p for p in self.layers if not p.requires_grad]
        for p in frozen:
            p.requires_grad_(True)
        return frozen

    def loss(self, used: list[bool], scale: float) -> Tensor:
        terms = [(p.double() - scale).square().sum() for p, use in zip(self.layers, used, strict=True) if use]
        if used[0]:
            terms.append(self.layers[0].double().sum() * scale)
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def one_process(plan: dict[str, Any], build: Build, workers: int) -> Branches:
    """Return the model after three steps of one process on the summed gradients of workers."""
    reference = Branches(plan)
    optimizer = build([p for p in reference.parameters() if p.requires_grad])
    for step in range(3):
        optimizer.zero_grad()
        if step == plan["thaw"] and (unfrozen := reference.thaw()):
            optimizer.add_param_group({"params": unfrozen})
        losses = [reference.loss(plan["used"][step * 3 + r], r + 1.0) for r in range(workers)]
        total = torch.stack(losses).sum()
        if total.requires_grad:
            total.backward()
        optimizer.step()
    return reference


def three_steps(
    rank: int, model: Branches, strategy: SyncStrategy, made: ModelOptimizer, plan: dict[str, Any]
) -> list[Tensor]:
    """Return the layers of `model` after this rank's three steps; only workers have a loss."""
    for step in range(3):
        model.zero_grad()
        if step == plan["thaw"]:
            model.thaw()
        made.adopt()
        strategy.on_backward(step)
        if rank < plan["size"]:
            loss = model.loss(plan["used"][step * 3 + rank], rank + 1.0)
            if loss.requires_grad:
                loss.backward()
        strategy.on_gradients(step)
        made.torch.step()
        strategy.on_parameters(step)
    return [p.detach().clone() for p in model.layers]
