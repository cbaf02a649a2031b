"""Turns a model into a program of tensor operations, by torch.export."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hvd_train.errors import UserError
from hvd_train.state import model_state
from hvd_train.trained.exporting.binding import Binding
from hvd_train.trained.exporting.inputs import Inputs

BATCH, LENGTH = "batch", "length"
"""The names of dimensions of any size: the number of samples, and of the tokens of a language model."""
Axes = tuple[dict[int, str], ...]
"""For each input the names of its dimensions of any size, by their number."""
Shapes = dict[str, list[str | int]]
"""The shape of each input or output by its name; a name in a shape stands for any size."""

_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass(frozen=True)
class Source:
    """A model, and what an exporter needs to know of its inputs."""

    module: nn.Module
    """In eval mode, on the CPU, floats in float32."""
    binding: Binding
    example: tuple[Tensor, ...]
    """The inputs of a batch of two samples."""
    axes: Axes
    results: tuple[Tensor, ...]
    """The outputs for the example."""
    outputs: Shapes
    rebuild: Callable[[], nn.Module]
    """Returns a copy of the module whose weights are not set."""

    def trace(self, to: str, most: int | None = None) -> ExportedProgram:
        """Return the program of the model; UserError, which names the line, if there is none.

        Its arguments are the inputs by position. A batch has at most `most` samples. It has no lines of
        code and no paths of this machine, which make a third of the bytes of a small program.
        """
        pairs = list(zip(self.axes, self.example, strict=True))
        # ExecuTorch plans memory for the example: it must have as many samples as a batch may have.
        example = self.example if most is None else tuple(_grown(axes, x, most) for axes, x in pairs)
        shapes = tuple(_dimensions(axes, x, most) for axes, x in pairs)
        try:
            program = torch.export.export(_Flat(self.module, self.binding), example, dynamic_shapes=(shapes,))
        except Exception as error:
            raise UserError(
                f"--to {to}: torch.export cannot export the model: {_reason(error, self.module)}"
            ) from error
        _check_sizes(sizes(program, self), self, to)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program


class _Flat(nn.Module):
    """Takes and returns tensors by position."""

    def __init__(self, model: nn.Module, binding: Binding) -> None:
        super().__init__()
        self.model = model
        self._binding = binding

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self._binding.flat(self._binding.call(self.model, tensors))
        return found[0] if len(found) == 1 else tuple(found)


def source_of(model: nn.Module, inputs: Inputs, *, language: bool) -> Source:
    """Return a copy of `model` to export; UserError if it cannot be called without targets."""
    module = copy.deepcopy(model).eval().requires_grad_(False)
    model_state.convert_(module, torch.device("cpu"), torch.float32)
    try:
        binding = Binding(module, inputs.held_out(2))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the model cannot be called with its inputs alone, without targets: {error}") from error
    batches = inputs.examples(binding)
    with torch.no_grad():
        two, three = (tuple(binding.flat(binding.call(module, batch))) for batch in batches[:2])
    found = {
        name: _output(*pair, language) for name, pair in zip(binding.outputs, zip(two, three, strict=True), strict=True)
    }
    return Source(module, binding, batches[0], axes(batches, language=language), two, found, partial(_unset, module))


def _output(two: Tensor, three: Tensor, language: bool) -> list[str | int]:
    """Return the shape of an output, given that of two and of three samples."""
    names: dict[int, str] = {0: BATCH} if two.dim() and len(two) == 2 and len(three) == 3 else {}
    if language and names and two.dim() > 1:
        names[1] = LENGTH
    return [names.get(d, size) for d, size in enumerate(two.shape)]


def _unset(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose saved floats are not numbers, so that one that is not loaded shows."""
    empty = copy.deepcopy(module)
    for value in empty.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.fill_(torch.nan)
    return empty


def axes(batches: Sequence[tuple[Tensor, ...]], *, language: bool) -> Axes:
    """Return the dimensions of any size of inputs, of which `batches` are examples.

    These are the number of samples, all dimensions that differ between the batches, and the length
    of the inputs of a language model. Those that differ in the same way have one name, such as a text and
    its mask. The first two batches have two and three samples.
    """
    two, three = batches[:2]
    found: list[dict[int, str]] = []
    names: dict[tuple[int, ...], str] = {}
    for number, (x, y) in enumerate(zip(two, three, strict=True)):
        if not x.dim() or (x.shape[0], y.shape[0]) != (2, 3):
            found.append({})
            continue
        sizes = zip(*(batch[number].shape[1:] for batch in batches), strict=True)
        varied = {d: _named(names, (d, *of)) for d, of in enumerate(sizes, 1) if len(set(of)) > 1}
        length = {1: LENGTH} if language and x.dim() > 1 else {}
        found.append({0: BATCH, **varied, **length})
    return tuple(found)


def _named(names: dict[tuple[int, ...], str], key: tuple[int, ...]) -> str:
    """Return the name of a dimension, whose number and sizes `key` has: of equal ones the same."""
    others = sum(known[0] == key[0] for known in names)
    return names.setdefault(key, f"size_{key[0]}_{others + 1}" if others else f"size_{key[0]}")


def sizes(program: ExportedProgram, source: Source) -> Shapes:
    """Return the shape of each input of `program` by its name; names stand for any size."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [values[name].shape for name in program.graph_signature.user_inputs]
    return {
        name: [axes[d] if (fixed := _fixed(size)) is None else fixed for d, size in enumerate(shape)]
        for name, shape, axes in zip(source.binding.inputs, shapes, source.axes, strict=True)
    }


def _fixed(size: int | torch.SymInt) -> int | None:
    """Return the only size that a program takes in a dimension; None if it takes several."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _check_sizes(found: Shapes, source: Source, to: str) -> None:
    """Raise UserError if the program fixes a size in which samples differ."""
    for (name, shape), of in zip(found.items(), source.axes, strict=True):
        for d, axis in of.items():
            if axis not in (BATCH, LENGTH) and isinstance(shape[d], int):
                raise UserError(
                    f"--to {to}: the program takes '{name}' of the size {shape[d]} in dimension {d} only, and samples differ in "
                    "it: the code of the model fixes it (torch repeats nn.GRU and nn.LSTM for each step)"
                )


def declared(source: Source) -> Shapes:
    """Return the shape of each input of a model that is not traced, as `sizes` does."""
    named = zip(source.binding.inputs, source.example, source.axes, strict=True)
    return {name: [axes.get(d, size) for d, size in enumerate(x.shape)] for name, x, axes in named}


def _dimensions(axes: dict[int, str], x: Tensor, most: int | None) -> dict[int, Any]:
    """Return what torch.export takes for the dimensions of an input.

    The sizes of other dimensions than the batch may follow from the code of the model, which may
    also fix them.
    """
    others = {d: Dim.AUTO if most is None else Dim.AUTO(min=1, max=x.shape[d]) for d in axes if d}
    return {**({0: Dim(BATCH, min=1, max=most)} if axes else {}), **others}


def _grown(axes: dict[int, str], x: Tensor, most: int) -> Tensor:
    """Return an input with `most` samples, if its first dimension is the batch."""
    return x[torch.arange(most) % len(x)] if axes else x


def _reason(error: Exception, module: nn.Module) -> str:
    """Return why the model has no program, with the module and the line of the code, as one sentence."""
    text = " ".join(str(error).partition("\n")[0].split()).rstrip(".")
    if "Constraints violated" in text and f"({BATCH})" in text:
        return "its code fixes the number of samples in a batch; take it from the inputs, as by x.shape[0]"
    if "data-dependent" in text:
        text = "the operations depend on the values of a tensor (torch.where and torch.cond choose without a branch)"
    where = _where(error.__traceback__, module)
    return f"{text}{f', in {where}' if where else ''}"


def _where(trace: TracebackType | None, module: nn.Module) -> str | None:
    """Return the innermost line of the model's own code in a traceback."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    own = [one for one in _frames(trace) if not one.tb_frame.f_code.co_filename.startswith(_FOREIGN)]
    of_model = [one for one in own if id(one.tb_frame.f_locals.get("self")) in paths or one.tb_frame.f_locals]
    if not of_model:
        return None
    frame, line = of_model[-1].tb_frame, of_model[-1].tb_lineno
    file = frame.f_code.co_filename
    path = next((paths[id(v)] for v in frame.f_locals.values() if id(v) in paths), "")
    name = f"module '{path}', " if path else ""
    return f"{name}{Path(file).name}, line {line}: {linecache.getline(file, line).strip()}"


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next
