"""How each kind of input is divided into parts, what stands for its absence, and what a picture shows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hvd_train.data.media.features import log_mel
from hvd_train.trained.explaining import groups
from hvd_train.trained.explaining.subject import Field

Baseline = Literal["auto", "zero", "mean"]
Decode = Callable[[list[int]], str]
CHANNELS = (1, 3, 4)
MELS, WINDOW_MS, HOP_MS = 64, 25, 10
"""The spectrogram that is drawn of a waveform."""


class View(Protocol):
    """One kind of input. Tensors are those of one sample, without the dimension of rows."""

    @property
    def kind(self) -> str:
        """The name that chooses the picture."""

    def groups(self, shape: Sequence[int]) -> Tensor:
        """Return the part (1, *shape) of each value of the features, int64."""

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        """Return what expands to features without information; `mean` returns the mean of training samples."""

    def map(self, values: Tensor) -> Tensor:
        """Return the sum of the attributions `values` of each part that is shown."""

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        """Return the input as an array that is drawn below the map, and its texts as JSON."""


@dataclass(frozen=True)
class Table:
    """The encoded columns of a row (inputs,)."""

    columns: Sequence[Mapping[str, Any]]
    """As in `data.json`."""
    kind: str = "table"

    @property
    def widths(self) -> list[int]:
        return [len(column["categories"]) if column["kind"] == "onehot" else 1 for column in self.columns]

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.columns(self.widths)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        numbers = [column for column in self.columns if column["kind"] == "number"]
        standardised = any((column["mean"], column["deviation"]) != (0, 1) for column in numbers)
        return torch.zeros_like(feature) if standardised or not numbers else mean()

    def map(self, values: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in values.split(self.widths)])

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        values = [_original(c, part) for c, part in zip(self.columns, leaf.split(self.widths), strict=True)]
        return None, {"parts": [column["name"] for column in self.columns], "values": values}


@dataclass(frozen=True)
class Text:
    """Tokens (length,), whose features are embeddings (length, width)."""

    embedding: nn.Embedding
    decode: Decode
    kind: str = "text"

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.positions(shape)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        padding = self.embedding.padding_idx
        return mean() if padding is None else self.embedding.weight.detach()[padding]

    def map(self, values: Tensor) -> Tensor:
        return values.sum(-1)

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        return None, {"parts": [self.decode([token]) for token in leaf.tolist()]}


@dataclass(frozen=True)
class Image:
    """Pixels (channels, rows, columns), standardised by `mean` and `std` if these are known."""

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    kind: str = "image"

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.tiles(shape)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        return -self._column(self.mean) / self._column(self.std)

    def map(self, values: Tensor) -> Tensor:
        return values.sum(0)

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        pixels = leaf.float() * self._column(self.std) + self._column(self.mean)
        low, high = min(float(pixels.min()), 0.0), max(float(pixels.max()), 1.0)
        return ((pixels - low) / (high - low))[: 3 if len(pixels) > 2 else 1].movedim(0, -1), {}

    @staticmethod
    def _column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(-1, 1, 1)


@dataclass(frozen=True)
class Waveform:
    """Sound (channels, time). Maps have one value for each frame of the spectrogram that is drawn."""

    rate: int
    kind: str = "waveform"

    @property
    def hop(self) -> int:
        return max(1, self.rate * HOP_MS // 1000)

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.stretches(shape)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        return torch.zeros_like(feature)

    def map(self, values: Tensor) -> Tensor:
        frames = (torch.arange(values.shape[-1]) + self.hop // 2) // self.hop
        return values.new_zeros(1 + values.shape[-1] // self.hop).index_add(0, frames, values.sum(0))

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        window = max(2, self.rate * WINDOW_MS // 1000)
        return log_mel(leaf.float().mean(0), self.rate, MELS, window, self.hop), {"hop_ms": 1000 * self.hop / self.rate}


@dataclass(frozen=True)
class Spectrogram:
    """Features of sound (channels, features, frames), `hop_ms` apart."""

    hop_ms: float
    kind: str = "spectrogram"

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.tiles(shape)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        return mean().mean(-1, keepdim=True)

    def map(self, values: Tensor) -> Tensor:
        return values.sum(0)

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        return leaf.float().mean(0), {"hop_ms": self.hop_ms}


@dataclass(frozen=True)
class Array:
    """Numbers of any shape: one row is shown as a table, others as a map of the last two dimensions."""

    kind: str = "array"

    def groups(self, shape: Sequence[int]) -> Tensor:
        return groups.tiles(shape)

    def absent(self, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        return mean()

    def map(self, values: Tensor) -> Tensor:
        return values.flatten(0, -3).sum(0) if values.dim() > 2 else values

    def shown(self, leaf: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        return self.map(leaf.float()), {}


def view(field: Field, shape: Sequence[int], model: nn.Module, facts: Mapping[str, Any], decode: Decode) -> View:
    """Return the view of the input `field` of a sample, which has `shape`; `facts` is `data.json`.

    `decode` turns tokens into a text.
    """
    files = facts.get("files", {})
    if field.embedding is not None:
        embedding = model.get_submodule(field.embedding)
        assert isinstance(embedding, nn.Embedding)
        return Text(embedding, decode)
    if len(shape) <= 1:
        table = Table(facts.get("columns", ()))
        return table if sum(table.widths) == shape[0] else Table(_numbered(shape[0]))
    if "rate" in files and len(shape) == 2:
        return Waveform(files["rate"])
    if "rate" in files and len(shape) == 3:
        return Spectrogram(files["hop_ms"])
    if len(shape) == 3 and shape[0] in CHANNELS:
        return Image(files.get("mean") or (0.0,), files.get("std") or (1.0,))
    return Array()


def _numbered(inputs: int) -> list[dict[str, Any]]:
    """Return columns without names, whose values are shown as they are."""
    width = len(str(inputs - 1))
    return [{"name": f"x{n:0{width}}", "kind": "number", "mean": 0.0, "deviation": 1.0} for n in range(inputs)]


def _original(column: Mapping[str, Any], part: Tensor) -> str:
    """Return the value of a column before it was encoded, as a text."""
    if column["kind"] == "number":
        return f"{float(part[0]) * column['deviation'] + column['mean']:.4g}"
    code = int(part[0]) if column["kind"] == "code" else int(part.argmax()) + 1 if bool(part.any()) else 0
    return str(column["categories"][code - 1]) if code else "missing"
