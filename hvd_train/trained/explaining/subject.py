"""A model as a function of the features of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.compute.calling import caller, scores
from hvd_train.data.nesting import map_tensors, shown, tensors
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.trained.explaining.method import Features


@dataclass(frozen=True)
class Field:
    """One tensor among the inputs of a model, whose values are attributed."""

    name: str
    number: int
    """Its place among the tensors of the inputs."""
    embedding: str | None = None
    """The path of the layer that embeds it, if it has tokens; its features are the embeddings."""


def fields(model: nn.Module, inputs: Any) -> list[Field]:
    """Return the floating-point inputs, and the tokens that an `nn.Embedding` takes as they are.

    `inputs` is a batch. UserError if there are none.
    """
    embedded = _embedded(model, inputs)
    found = [
        Field(name, number, embedded.get(number))
        for number, (name, leaf) in enumerate(_named("", inputs))
        if leaf.is_floating_point() or number in embedded
    ]
    if not found:
        raise UserError(
            f"explain: the model takes {shown(inputs)}; expected floating-point inputs, or tokens that an nn.Embedding takes"
        )
    return found


@dataclass(frozen=True)
class Subject:
    """The model, and the inputs of one sample as a batch of one row."""

    model: nn.Module
    inputs: Any
    fields: list[Field]
    spec: DataSpec

    def features(self) -> Features:
        """Return what is attributed: inputs, and embeddings in the place of tokens."""
        leaves = tensors(self.inputs)
        return tuple(self._feature(field, leaves[field.number]).detach() for field in self.fields)

    def outputs(self, *features: Tensor) -> Tensor:
        """Return the scores (rows, outputs) of rows that have `features` and else are the sample.

        For a language model they are those of the token after the last one. UserError for outputs
        of another shape.
        """
        rows = len(features[0])
        numbers, given = count(), {f.number: x for f, x in zip(self.fields, features, strict=True) if not f.embedding}
        whole = map_tensors(lambda x: given.get(next(numbers), _repeated(x, rows)), self.inputs)
        with ExitStack() as hooks:
            leaves = tensors(whole)
            for field, embedded in zip(self.fields, features, strict=True):
                if field.embedding:
                    layer = self.model.get_submodule(field.embedding)
                    hook = _replacing(leaves[field.number], embedded)
                    hooks.callback(layer.register_forward_hook(hook).remove)
            found = scores(caller(self.model)(whole))
        return self._each(found)

    def score(self, output: int) -> Callable[..., Tensor]:
        """Return the function from features to the score number `output`, (rows,)."""
        return lambda *features: self.outputs(*features)[:, output]

    def _feature(self, field: Field, leaf: Tensor) -> Tensor:
        return leaf if field.embedding is None else self.model.get_submodule(field.embedding)(leaf)

    def _each(self, found: Any) -> Tensor:
        if isinstance(found, Tensor) and found.dim() == 3 and self.spec.task == "language":
            return found[:, -1]
        if isinstance(found, Tensor) and found.dim() == 1:
            return found[:, None]
        if isinstance(found, Tensor) and found.dim() == 2:
            return found
        raise UserError(
            f"explain: the outputs are {shown(found)}, expected (samples, outputs), or (samples, length, vocabulary) of a "
            "language model"
        )


def check_outputs(outputs: Tensor) -> None:
    """Raise UserError if the scores of a sample are not finite."""
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("explain: the model gives a score that is not finite, so there is nothing to attribute")


def _named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nesting in the order of `map_tensors`."""
    if isinstance(value, Tensor):
        yield name or "input", value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(f"{name}.{key}".lstrip("."), inner)
    elif isinstance(value, tuple | list):
        for number, inner in enumerate(value):
            yield from _named(f"{name}.{number}".lstrip("."), inner)


def _embedded(model: nn.Module, inputs: Any) -> dict[int, str]:
    """Return the path of the `nn.Embedding` that takes each tensor of tokens, by its place."""
    leaves = [(number, leaf) for number, leaf in enumerate(tensors(inputs)) if not leaf.is_floating_point()]
    found: dict[int, str] = {}
    with ExitStack() as hooks:
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Embedding):

                def note(_: nn.Module, args: Any, path: str = path) -> None:
                    for number, leaf in leaves:
                        if args[0].shape == leaf.shape and torch.equal(args[0], leaf):
                            found.setdefault(number, path)

                hooks.callback(layer.register_forward_pre_hook(note).remove)
        with torch.no_grad():
            caller(model)(inputs)
    return found


def _replacing(tokens: Tensor, embedded: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    """Return a hook that gives `embedded` in the place of the embeddings of `tokens`."""

    def hook(_: nn.Module, args: Any, outputs: Tensor) -> Tensor | None:
        return embedded if args[0].shape == tokens.shape and torch.equal(args[0], tokens) else None

    return hook


def _repeated(x: Tensor, rows: int) -> Tensor:
    return x.expand(rows, *x.shape[1:]) if x.dim() else x
