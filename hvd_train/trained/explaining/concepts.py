"""Concept activation vectors: does a model use a concept, such as stripes, for a class?

Kim et al., "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept
Activation Vectors (TCAV)", arXiv 1711.11279.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hvd_train.data.files import import_extra
from hvd_train.errors import UserError, nearest

HELD_OUT = 0.33
"""The share of the examples that measure how well a vector separates them."""


@dataclass(frozen=True)
class Vector:
    """The direction in which the examples of a concept differ from others."""

    direction: Tensor
    """(values,), of length 1."""
    accuracy: float
    """The share of held-out examples that are on their side of the separating plane."""


def layer_of(model: nn.Module, name: str | None) -> str:
    """Return the layer whose outputs are looked at: `name`, or by default the second last with weights.

    After the last one, the score of a class is linear in the outputs of the layer before, and then
    one direction raises it for all samples or for none.
    """
    if name is None:
        layers = [path for path, module in model.named_modules() if _has_weights(module)]
        if len(layers) < 2:
            raise UserError("--method tcav: the model has no hidden layer, expected at least two layers with weights")
        return str(layers[-2])
    known = [path for path, _ in model.named_modules() if path]
    if name not in known:
        raise UserError(f"--layer: no '{name}' in the model{nearest(name, known)}")
    return name


def activations(model: nn.Module, layer: str, run: Callable[[], object]) -> Tensor:
    """Return the outputs (rows, values) of `layer` while `run` calls the model on a batch."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, outputs: object) -> None:
        if isinstance(outputs, Tensor):
            seen.append(outputs)

    hook = model.get_submodule(layer).register_forward_hook(note)
    try:
        run()
    finally:
        hook.remove()
    if len(seen) != 1:
        raise UserError(
            f"--layer: '{layer}' gives {len(seen)} tensors in a call of the model, expected one; name another layer"
        )
    return seen[0].flatten(1)


def gradients(model: nn.Module, layer: str, score: Callable[[], Tensor]) -> Tensor:
    """Return the gradient (rows, values) of `score`, (rows,), with respect to the outputs of `layer`."""
    kept: list[Tensor] = []

    def leaf(_: nn.Module, __: object, outputs: Tensor) -> Tensor:
        kept.append(outputs.detach().requires_grad_())
        return kept[-1]

    hook = model.get_submodule(layer).register_forward_hook(leaf)
    try:
        (found,) = torch.autograd.grad(score().sum(), kept)
    finally:
        hook.remove()
    return found.flatten(1)


def vector(concept: Tensor, others: Tensor, seed: int) -> Vector:
    """Return the vector that separates the activations of a concept (rows, values) from `others`."""
    linear = import_extra("sklearn.linear_model", "explain")
    generator = np.random.default_rng(seed)
    train, held = zip(*(_divided(rows, generator) for rows in (concept, others)), strict=True)
    x, y = _labelled(train)
    fitted = linear.LogisticRegression(C=0.1, max_iter=1000).fit(x, y)
    direction = torch.from_numpy(fitted.coef_[0]).to(concept.dtype)
    length = float(direction.norm())
    return Vector(direction / length if length else direction, float(fitted.score(*_labelled(held))))


def sensitivity(gradient: Tensor, direction: Tensor) -> float:
    """Return the share of samples whose score rises along `direction`: the TCAV score, 0 to 1."""
    return float((gradient @ direction > 0).double().mean())


def probability(scores: Sequence[float], random: Sequence[float]) -> float:
    """Return the two-sided p-value of Welch's t-test: are the mean scores of both kinds of vectors equal?"""
    if np.std(scores) == 0 and np.std(random) == 0:
        return 1.0 if np.mean(scores) == np.mean(random) else 0.0
    with warnings.catch_warnings():  # scipy warns of scores that are all equal, which is common
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(import_extra("scipy.stats", "explain").ttest_ind(scores, random, equal_var=False).pvalue)


def _has_weights(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() > 1


def _divided(rows: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(generator.permutation(len(rows)))
    cut = max(1, round(len(rows) * HELD_OUT))
    return rows[order[cut:]], rows[order[:cut]]


def _labelled(parts: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    concept, others = parts
    return torch.cat([concept, others]).numpy(), np.repeat([1, 0], [len(concept), len(others)])
