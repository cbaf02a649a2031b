"""Between the nested inputs and outputs of a model and the flat tensors of an exported program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.compute.calling import arguments
from hvd_train.data.nesting import like, map_tensors, shown
from hvd_train.errors import UserError

Place = tuple[str, ...]


class Binding:
    """The inputs and outputs of one model: their names, and their place in the arguments of `forward`.

    Values of the inputs that are not tensors, such as numbers, are those of the example.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        """`example` are the inputs of a batch. Raise UserError if the model returns no tensor."""
        self._divide = arguments(model)
        self._arguments = self._divide(example)
        self.inputs = _names("input", _nest(*self._arguments))
        with torch.no_grad():
            self._result = plain(self.call(model, self.tensors(example)))
        self.outputs = _names("output", self._result, taken=self.inputs)
        if not self.outputs:
            raise UserError(f"the model returns {shown(self._result)}, and an exported program returns tensors")

    def tensors(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the inputs of a batch for an exported program: on the CPU, floats in float32."""
        return tuple(_portable(x) for _, x in _tensors(_nest(*self._divide(inputs))))

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Call a model, which is not exported, with what `tensors` returned."""
        rest = iter(tensors)
        positional, keywords = map_tensors(lambda _: next(rest), self._arguments)
        return model(*positional, **keywords)

    def flat(self, outputs: Any) -> list[Tensor]:
        """Return the tensors in the outputs of a model, in the order of the names."""
        return [x for _, x in _tensors(plain(outputs))]

    def nested(self, tensors: Sequence[Tensor]) -> Any:
        """Return the outputs of an exported program as the model nests them."""
        rest = iter(tensors)
        return map_tensors(lambda _: next(rest), self._result)


def plain(outputs: Any) -> Any:
    """Return outputs as tensors, dicts, tuples and lists; the attributes of another object as a dict."""
    if isinstance(outputs, Mapping):
        return {str(key): plain(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return like(outputs, [plain(value) for value in outputs])
    if isinstance(outputs, Tensor) or not hasattr(outputs, "logits"):
        return outputs
    return {name: value for name, value in vars(outputs).items() if isinstance(value, Tensor)}


def _portable(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    return x.float() if x.is_floating_point() else x


def _nest(positional: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return the arguments as one nesting, whose places name them."""
    if keywords:
        return keywords
    return positional[0] if len(positional) == 1 else positional


def _tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Yield the tensors of a nesting in the order of `map_tensors`, each with its place."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict | tuple | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            yield from _tensors(one, (*place, str(key)))


def _names(kind: str, value: Any, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a name for each tensor: its place as an identifier, after `kind` if it is no word."""
    found: list[str] = []
    for place, _ in _tensors(value):
        word = re.sub(r"\W", "_", "_".join(place))
        name = word if word and not word[0].isdigit() else f"{kind}_{word}".rstrip("_")
        while name in taken or name in found:
            name = f"{kind}_{name}"
        found.append(name)
    return tuple(found)
