"""Cutting a model into consecutive stages of about equal cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from hvd_train.errors import UserError
from hvd_train.models.base import Link


def balanced(costs: Sequence[int], parts: int) -> list[range]:
    """Consecutive, non-empty pieces of `costs`, of which the dearest is as cheap as can be."""
    sums = [0, *accumulate(costs)]

    @cache
    def best(end: int, parts: int) -> tuple[int, tuple[int, ...]]:
        """What the dearest of `parts` pieces of the first `end` costs, and where pieces begin."""
        if parts == 1:
            return sums[end], (0,)
        choices = ((at, *best(at, parts - 1)) for at in range(parts - 1, end))
        return min((max(dearest, sums[end] - sums[at]), (*starts, at)) for at, dearest, starts in choices)

    starts = best(len(costs), parts)[1]
    return [range(a, b) for a, b in pairwise((*starts, len(costs)))]


def links(model: nn.Module) -> list[Link]:
    """The steps of `model`'s forward pass: the modules of an `nn.Sequential`, what `model.links()` says, or all at once."""
    own: Callable[[], list[Link]] | None = getattr(model, "links", None)
    if own:
        return own()
    return [Link((path,), module) for path, module in flattened("", model)]


def flattened(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that run one after another in `module`, which is at `path`: itself, where it is no `nn.Sequential`."""
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module.named_children():
        yield from flattened(f"{path}.{name}" if path else name, child)


def stages(model: nn.Module, sample: Tensor, count: int) -> list[range]:
    """Which of the model's links each of `count` stages runs; `sample` is a batch of one, which tells sizes of activations.

    The cost of a link is its parameters plus its activations. Every stage has parameters that are trained; UserError where
    the model does not allow for that.
    """
    chain = links(model)
    if count == 1:
        return [range(len(chain))]
    trained = [i for i, link in enumerate(chain) if any(p.requires_grad for p in _parameters(model, link))]
    if len(chain) == 1 or len(trained) < count:
        raise UserError(f"parallel.pipeline: {count} stages, but {_obstacle(model, chain, len(trained))}")
    starts = [0, *trained[1:], len(chain)]
    costs = _costs(model, chain, sample)
    pieces = balanced([sum(costs[a:b]) for a, b in pairwise(starts)], count)
    cut = [range(starts[piece.start], starts[piece.stop]) for piece in pieces]
    _check_sharing(model, chain, cut)
    return cut


def tied(model: nn.Module, chain: Sequence[Link], cut: Sequence[range]) -> dict[str, tuple[int, ...]]:
    """By name, the parameters that several stages use, and which stages those are."""
    users: dict[str, set[int]] = {}
    for stage, part in enumerate(cut):
        for name in _names(model, [chain[i] for i in part]):
            users.setdefault(name, set()).add(stage)
    return {name: tuple(sorted(of)) for name, of in users.items() if len(of) > 1}


def prune(model: nn.Module, chain: Sequence[Link]) -> None:
    """Take out of `model` all submodules that `chain` does not use."""
    _prune(model, "", {path for link in chain for path in link.paths})


def _prune(module: nn.Module, at: str, keep: set[str]) -> None:
    for name, child in list(module.named_children()):
        path = f"{at}.{name}" if at else name
        if path in keep or "" in keep:
            continue
        if any(k.startswith(f"{path}.") for k in keep):
            _prune(child, path, keep)
        else:
            del module._modules[name]


def _costs(model: nn.Module, chain: Sequence[Link], x: Tensor) -> list[int]:
    costs = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for link in chain:
            x = link.run(x)
            costs.append(sum(p.numel() for p in _parameters(model, link)) + x.numel())
    model.train(training)
    return costs


def _parameters(model: nn.Module, link: Link) -> list[nn.Parameter]:
    return [p for path in link.paths for p in model.get_submodule(path).parameters()]


def _names(model: nn.Module, chain: Sequence[Link]) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for link in chain
        for path in link.paths
        for name, _ in model.get_submodule(path).named_parameters(remove_duplicate=False)
    }


def _obstacle(model: nn.Module, chain: Sequence[Link], trained: int) -> str:
    if len(chain) == 1:
        kind = type(model).__name__
        return f"the model is a {kind}; expected an nn.Sequential, a model with links() such as 'transformer', or pipeline=1"
    return f"only {trained} of the model's parts have parameters that are trained; expected at most {trained} stages"


def _check_sharing(model: nn.Module, chain: Sequence[Link], cut: Sequence[range]) -> None:
    """Between stages a parameter may be shared under one name only, by which optimizer state and checkpoints go."""
    first: dict[nn.Parameter, tuple[str, int]] = {}
    for stage, part in enumerate(cut):
        for name in sorted(_names(model, [chain[i] for i in part])):
            before, of = first.setdefault(model.get_parameter(name), (name, stage))
            if before != name and of != stage:
                raise UserError(
                    f"parallel.pipeline: '{name}' in stage {stage + 1} is the same parameter as '{before}' in stage {of + 1}; "
                    "take fewer stages, or give the model a method links() in which both are one module"
                )
