"""The values of a record that are the inputs and the target of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvd_train.data.records.values import Place, within
from hvd_train.errors import UserError, nearest

LABELS = "labels"
"""The key of the target in samples that are dicts."""


def pick(record: Any, key: str, place: Place) -> Any:
    """Return the value at `key`, where a dot enters a nested record; UserError if there is none."""
    if isinstance(record, Mapping):
        if key in record:
            return record[key]
        words = key.split(".")
        for end in range(len(words) - 1, 0, -1):
            if (first := ".".join(words[:end])) in record:
                return pick(record[first], ".".join(words[end:]), within(place, first))
    known = list(map(str, record)) if isinstance(record, Mapping) else []
    raise UserError(f"{place()}: no key '{key}'{nearest(key, known)}")


@dataclass(frozen=True)
class Fields:
    """The keys of inputs and target.

    Inputs are one value, values by position, or values by the name of the model's parameter.
    """

    inputs: str | Sequence[str] | Mapping[str, str]
    target: str | None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the inputs."""
        if isinstance(self.inputs, str):
            return (self.inputs,)
        return tuple(self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs)

    def sample(self, values: Mapping[str, Any], target: Any) -> Any:
        """Return the sample of input `values` by key; `target` is None without a target."""
        if isinstance(self.inputs, Mapping):
            named = {name: values[key] for name, key in self.inputs.items()}
            return named if self.target is None else {**named, LABELS: target}
        if self.target is None:
            return values[self.inputs] if isinstance(self.inputs, str) else tuple(map(values.__getitem__, self.inputs))
        return (*(values[key] for key in self.keys), target)
