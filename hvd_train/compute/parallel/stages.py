"""Cuts a model into consecutive stages of about equal cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from hvd_train.compute.calling import caller
from hvd_train.data.nesting import tensors
from hvd_train.errors import UserError
from hvd_train.models.base import Layer


def balanced(costs: Sequence[int], groups: int) -> list[range]:
    """Split `costs` into consecutive, non-empty groups so that the largest cost is minimal."""
    sums = [0, *accumulate(costs)]

    @cache
    def best(end: int, groups: int) -> tuple[int, tuple[int, ...]]:
        """Return the largest cost of the best groups of `costs[:end]`, and where these begin."""
        if groups == 1:
            return sums[end], (0,)
        choices = ((start, *best(start, groups - 1)) for start in range(groups - 1, end))
        return min((max(largest, sums[end] - sums[start]), (*starts, start)) for start, largest, starts in choices)

    starts = best(len(costs), groups)[1]
    return [range(a, b) for a, b in pairwise((*starts, len(costs)))]


def layers(model: nn.Module) -> list[Layer]:
    """Return the layers of `model` in the order in which they run.

    These are what `model.pipeline_layers()` returns, the modules of an `nn.Sequential`, or one
    layer.
    """
    own: Callable[[], list[Layer]] | None = getattr(model, "pipeline_layers", None)
    if own:
        return own()
    return [Layer((path,), module) for path, module in flattened("", model)]


def flattened(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that run one after another in `module`, with their paths.

    Yield `module` itself if it is not an `nn.Sequential`.
    """
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module.named_children():
        yield from flattened(f"{path}.{name}" if path else name, child)


def stages(model: nn.Module, sample: Any, count: int) -> list[range]:
    """Return the layers of each of `count` stages, as ranges of their numbers.

    `sample` is the inputs of a batch of one. The cost of a layer is the number of its parameters and activations.
    Every stage has trained parameters; UserError if the model does not allow that.
    """
    chain = layers(model)
    if count == 1:
        return [range(len(chain))]
    trained = [i for i, layer in enumerate(chain) if any(p.requires_grad for p in _parameters(model, layer))]
    if len(chain) == 1 or len(trained) < count:
        raise UserError(f"parallel.pipeline: {count} stages, but {_obstacle(model, chain, len(trained))}")
    starts = [0, *trained[1:], len(chain)]
    costs = _costs(model, chain, sample)
    groups = balanced([sum(costs[a:b]) for a, b in pairwise(starts)], count)
    cut = [range(starts[group.start], starts[group.stop]) for group in groups]
    _check_sharing(model, chain, cut)
    return cut


def tied(model: nn.Module, chain: Sequence[Layer], cut: Sequence[range]) -> dict[str, tuple[int, ...]]:
    """Return the stages of each parameter that several stages use, by its name."""
    users: dict[str, set[int]] = {}
    for stage, numbers in enumerate(cut):
        for name in _names(model, [chain[i] for i in numbers]):
            users.setdefault(name, set()).add(stage)
    return {name: tuple(sorted(of)) for name, of in users.items() if len(of) > 1}


def prune(model: nn.Module, chain: Sequence[Layer]) -> None:
    """Remove all submodules that `chain` does not use from `model`."""
    _prune(model, "", {path for layer in chain for path in layer.paths})


def _prune(module: nn.Module, at: str, keep: set[str]) -> None:
    for name, child in list(module.named_children()):
        path = f"{at}.{name}" if at else name
        if path in keep or "" in keep:
            continue
        if any(k.startswith(f"{path}.") for k in keep):
            _prune(child, path, keep)
        else:
            del module._modules[name]


def _costs(model: nn.Module, chain: Sequence[Layer], x: Any) -> list[int]:
    costs = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for number, layer in enumerate(chain):
            x = layer.run(x) if number else caller(layer.run)(x)
            activations = sum(y.numel() for y in tensors(x))
            costs.append(sum(p.numel() for p in _parameters(model, layer)) + activations)
    model.train(training)
    return costs


def _parameters(model: nn.Module, layer: Layer) -> list[nn.Parameter]:
    return [p for path in layer.paths for p in model.get_submodule(path).parameters()]


def _names(model: nn.Module, chain: Sequence[Layer]) -> set[str]:
    """Return all names of the parameters of `chain`; a shared parameter has several."""
    return {
        f"{path}.{name}" if path else name
        for layer in chain
        for path in layer.paths
        for name, _ in model.get_submodule(path).named_parameters(remove_duplicate=False)
    }


def _obstacle(model: nn.Module, chain: Sequence[Layer], trained: int) -> str:
    """Describe what keeps `model` from having more stages."""
    if len(chain) == 1:
        kind = getattr(model, "kind", type(model).__name__)
        return (
            f"the model is a {kind}; expected an nn.Sequential, a model with pipeline_layers() such as 'transformer', or "
            "pipeline=1"
        )
    return f"only {trained} of the model's layers have parameters that are trained; expected at most {trained} stages"


def _check_sharing(model: nn.Module, chain: Sequence[Layer], cut: Sequence[range]) -> None:
    """Raise UserError if stages share a parameter under two names: saved state goes by its name."""
    first: dict[nn.Parameter, tuple[str, int]] = {}
    for stage, numbers in enumerate(cut):
        for name in sorted(_names(model, [chain[i] for i in numbers])):
            before, of = first.setdefault(model.get_parameter(name), (name, stage))
            if before != name and of != stage:
                raise UserError(
                    f"parallel.pipeline: '{name}' in stage {stage + 1} is the same parameter as '{before}' in stage {of + 1}; "
                    "take fewer stages, or give the model a method pipeline_layers() in which both are one module"
                )
