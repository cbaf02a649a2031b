"""How a model is called with the inputs of a batch, and where its outputs are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
POSITIONS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Call = Callable[[Any], Any]
"""Calls a model with the inputs of a batch."""


def caller(model: Callable[..., Any]) -> Call:
    """Return the function that calls a model or a layer with inputs, as `arguments` divides them."""
    divide = arguments(model)

    def call(inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            return model(inputs)
        positional, keywords = divide(inputs)
        return model(*positional, **keywords)

    return call


def arguments(model: Callable[..., Any]) -> Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the function that makes arguments of inputs, as the `forward` of the model takes them.

    - A dict becomes keyword arguments. Keys that `forward` does not take are left out; `**kwargs`
      takes all keys with tensors. If `forward` takes none of the keys, the dict is one argument.
    - The values of a tuple or list become positional arguments if `forward` takes as many.
    - Everything else is one argument.
    """
    parameters = _parameters(model)
    names = {p.name for p in parameters if p.kind in KEYWORDS}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    most = sum(p.kind in POSITIONS for p in parameters)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters) and not most:
        most = 2**31

    def divide(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(inputs, Mapping):
            chosen = {k: v for k, v in inputs.items() if k in names or (takes_all and not _is_text(v))}
            return ((), chosen) if chosen else ((inputs,), {})
        if isinstance(inputs, tuple | list) and 1 < len(inputs) <= most:
            return tuple(inputs), {}
        return (inputs,), {}

    return divide


def scores(outputs: Any) -> Any:
    """Return what losses and metrics compare with targets.

    It is `logits` of a mapping or object, the second value of a tuple that begins with a loss, which
    is 0-dim, and else all outputs.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if (
        isinstance(outputs, tuple | list)
        and len(outputs) > 1
        and isinstance(outputs[0], Tensor)
        and not outputs[0].dim()
    ):
        return outputs[1]
    return getattr(outputs, "logits", outputs)


def _parameters(model: Callable[..., Any]) -> list[inspect.Parameter]:
    if type(model) is nn.Sequential:
        return []
    try:
        return list(inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values())
    except (TypeError, ValueError):  # compiled and scripted modules
        return []


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))
