"""Explains single samples: attributions, how complete they are, and whether they depend on the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.data.nesting import first_sample, tensors
from hvd_train.data.seeding import kept_generators, sample_seed, seed_globals
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.trained.explaining import memory
from hvd_train.trained.explaining.completeness import relative_error, total
from hvd_train.trained.explaining.groups import numbered
from hvd_train.trained.explaining.method import Features, Method, Question
from hvd_train.trained.explaining.sanity import randomised, rank_correlation
from hvd_train.trained.explaining.subject import Field, Subject, check_outputs, fields
from hvd_train.trained.explaining.views import Baseline, Decode, View, view


@dataclass(frozen=True)
class Explained:
    """One sample: figures and texts as JSON, and what is drawn, as arrays by name."""

    document: dict[str, Any]
    arrays: dict[str, Tensor]


@dataclass(frozen=True)
class Known:
    """What is known of the data of a run."""

    spec: DataSpec
    facts: Mapping[str, Any]
    """As in `data.json`."""
    name: Callable[[int], str]
    """Returns the name of an output."""
    decode: Decode
    """Turns tokens into a text."""
    mean: Callable[[int], Tensor]
    """Returns the mean over training samples of one of the tensors of their inputs."""


class Explainer:
    """Explains samples of one data set by one method."""

    def __init__(self, model: nn.Module, method: Method, known: Known, *, baseline: Baseline, seed: int) -> None:
        """`model` is in evaluation mode."""
        self._model, self._method, self._known = model, method, known
        self._baseline, self._seed = baseline, seed
        self._random = randomised(model, seed)
        self._rows: int | None = None

    def explain(self, inputs: Any, label: int | None, position: int, output: int | None) -> Explained:
        """Explain the score `output`, or the highest one, of the sample `position`, whose class is `label`.

        `inputs` is a batch of one. Raise UserError for inputs and outputs that cannot be explained.
        """
        subject = Subject(self._model, inputs, fields(self._model, inputs), self._known.spec)
        with torch.no_grad():
            scores = subject.outputs(*subject.features())[0]
        check_outputs(scores)
        chosen = int(scores.argmax()) if output is None else output
        if chosen >= len(scores):
            raise UserError(f"--class: {chosen}, expected an output of the model from 0 to {len(scores) - 1}")
        found = self._attribute(subject, chosen, position)
        control = self._attribute(replace(subject, model=self._random), chosen, position)
        document: dict[str, Any] = {
            "sample": position,
            "class": None if label is None else self._known.name(label),
            "predicted": self._known.name(int(scores.argmax())),
            "explained": self._known.name(chosen),
            "score": float(scores[chosen]),
            "probability": None if self._is_regression else float(scores.double().softmax(0)[chosen]),
            "change": found.change,
            "sum": total(found.values) if self._method.signed else None,
            "completeness_error": relative_error(found.values, found.change) if self._method.signed else None,
            "steps": found.steps,
            "parts": sum(m.numel() for m in found.maps),
            **_likeness(found.maps, control.maps),
            "fields": [],
        }
        return self._shown(document, subject, found.maps)

    @property
    def _is_regression(self) -> bool:
        return self._known.spec.task == "regression"

    def _attribute(self, subject: Subject, output: int, position: int) -> _Found:
        """Attribute an output, with the same random numbers on every rank."""
        views, features = self._views(subject), subject.features()
        question = self._question(subject, views, features, output)
        with kept_generators():
            seed_globals(sample_seed(self._seed, position))
            attribution = self._method(question)
        values = tuple(value.detach() for value in attribution.values)
        maps = [v.map(value[0]) for v, value in zip(views, values, strict=True)]
        return _Found(values, maps, question.difference(), attribution.steps)

    def _views(self, subject: Subject) -> list[View]:
        leaves = tensors(subject.inputs)
        return [
            view(f, leaves[f.number].shape[1:], subject.model, self._known.facts, self._known.decode)
            for f in subject.fields
        ]

    def _question(self, subject: Subject, views: list[View], features: Features, output: int) -> Question:
        score = subject.score(output)
        if self._rows is None:
            self._rows = memory.rows(memory.bytes_of_one(subject.model, score, features))
        absent = [
            self._absent(v, feature[0], partial(self._mean, subject.model, f))[None]
            for v, f, feature in zip(views, subject.fields, features, strict=True)
        ]
        parts = [v.groups(feature.shape[1:]) for v, feature in zip(views, features, strict=True)]
        return Question(score, features, tuple(absent), numbered(parts), self._rows)

    def _absent(self, v: View, feature: Tensor, mean: Callable[[], Tensor]) -> Tensor:
        if self._baseline == "zero":
            return torch.zeros_like(feature)
        return (mean() if self._baseline == "mean" else v.absent(feature, mean)).expand_as(feature).clone()

    def _mean(self, model: nn.Module, f: Field) -> Tensor:
        if f.embedding is None:
            return self._known.mean(f.number)
        return model.get_parameter(f"{f.embedding}.weight").detach().mean(0)

    def _shown(self, document: dict[str, Any], subject: Subject, maps: list[Tensor]) -> Explained:
        """Add what is drawn: texts and attributions of few parts to the document, others as arrays."""
        leaves = tensors(subject.inputs)
        arrays: dict[str, Tensor] = {}
        for number, (f, v) in enumerate(zip(subject.fields, self._views(subject), strict=True)):
            array, texts = v.shown(first_sample(leaves[f.number]))
            entry = {"name": f.name, "kind": v.kind, **texts}
            if array is None:
                entry["attributions"] = maps[number].tolist()
            else:
                arrays |= {f"{number}.map": maps[number].float(), f"{number}.input": array.float()}
            document["fields"].append(entry)
        return Explained(document, arrays)


@dataclass(frozen=True)
class _Found:
    values: Features
    maps: list[Tensor]
    change: float
    steps: int | None


def _likeness(maps: list[Tensor], others: list[Tensor]) -> dict[str, float | None]:
    """Return the rank correlations of the maps with those of random weights, and of their magnitudes."""
    one, other = (torch.cat([m.flatten() for m in found]) for found in (maps, others))
    return {
        "rank_correlation": rank_correlation(one, other),
        "rank_correlation_of_magnitudes": rank_correlation(one.abs(), other.abs()),
    }
