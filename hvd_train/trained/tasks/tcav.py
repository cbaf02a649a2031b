"""Test which concepts a classifier uses for which classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.comm.agree import together
from hvd_train.comm.objects import gather_json
from hvd_train.compute.calling import caller, scores
from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.data import preprocessing
from hvd_train.data.batch import divide
from hvd_train.data.nesting import count
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.state import model_state
from hvd_train.trained import input
from hvd_train.trained.explaining import concepts
from hvd_train.trained.explaining.concept_examples import of_classes, of_folders
from hvd_train.trained.explaining.names import Outputs
from hvd_train.trained.restore import Trained, on_split, restore

VECTORS = 20
"""Vectors of each concept. Each is learned against other random samples."""
MOST = 200
"""The most examples of a concept."""
RANDOM = ""
"""The name of the concept whose examples are random samples."""


def create(
    *,
    concepts: Annotated[str, "folder with a folder of examples for each concept, or names of classes"],
    samples: Annotated[PositiveInt, "samples of each class that are measured"] = 16,
    split: Annotated[str, "split that the samples are from"] = "test",
    output: Annotated[str | None, "class that is explained; by default every class"] = None,
    layer: Annotated[str | None, "layer whose outputs are looked at; by default the second last"] = None,
) -> Tcav:
    return Tcav(concepts, samples, split, output, layer)


class Tcav:
    """Each rank learns every n-th vector, with random samples that are those of the vector."""

    def __init__(self, words: str, samples: int, split: str, output: str | None, layer: str | None) -> None:
        self._words, self._samples, self._split = words, samples, split
        self._output, self._layer = output, layer

    def run(self, context: TaskContext) -> dict[str, Any]:
        comm, trained = context.comm, restore(context)
        if trained.built.data.spec.task != "classification":
            raise UserError(
                f"--method tcav: it is of classes, and the task of the run is {trained.built.data.spec.task}; use another method"
            )
        model_state.convert_(trained.built.model, torch.device("cpu"), torch.float32)
        study = together(comm, partial(_Study, context, trained, self._words, self._layer))
        names = [*study.examples, RANDOM]
        jobs = [(name, number) for number in range(VECTORS) for name in names]
        gradients = together(comm, partial(self._gradients, trained, study))
        own = []
        with context.progress("tcav", len(jobs[comm.rank :: comm.size])) as advance:
            for name, number in jobs[comm.rank :: comm.size]:
                own.append([name, number, *study.measured(name, number, gradients)])
                advance()
        found = sorted((row for of_rank in gather_json(comm, own) for row in of_rank), key=lambda row: row[1])
        return {
            "method": "tcav",
            "checkpoint": str(context.checkpoint),
            "split": self._split,
            "layer": study.layer,
            "vectors": VECTORS,
            "concepts": {name: sum(map(count, batches)) for name, batches in study.examples.items()},
            "rows": _rows(found, list(study.examples), list(gradients)),
        }

    def _gradients(self, trained: Trained, study: _Study) -> dict[str, Tensor]:
        """Return the gradients of the score of each class for samples of the class, by its name."""
        outputs, split = Outputs(trained.built.data), on_split(trained, self._split)
        classes = sorted({int(n) for n in split.labels.tolist() if n >= 0})
        chosen = classes if self._output is None else [outputs.number(self._output)]
        found = {}
        for number in chosen:
            positions = (split.labels == number).nonzero()[: self._samples, 0]
            if len(positions):
                found[outputs.name(number)] = study.gradients(split.batch(positions), number)
        if not found:
            raise UserError(f"--split: '{self._split}' has no sample of a class; take another split")
        return found


class _Study:
    """The activations of examples and of random samples in one layer."""

    def __init__(self, context: TaskContext, trained: Trained, words: str, layer: str | None) -> None:
        config, data = context.config, trained.built.data
        self._model, self._call, self._seed = trained.built.model, caller(trained.built.model), config.seed
        self._label = config.data.label_key
        self.layer = concepts.layer_of(self._model, layer)
        if Path(words).is_dir():
            reads = input.of_run(data.spec, preprocessing.document(data), config.data)
            self.examples = of_folders(Path(words), reads, MOST)
        else:
            outputs = Outputs(data)
            numbers = {outputs.name(number): number for number in range(data.spec.outputs)}
            self.examples = of_classes(words, numbers, data, self._read, MOST)
        self._of_concepts = {name: self._activations(batches) for name, batches in self.examples.items()}
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
        self._of_random = self._activations(
            [self._read(data.train.batch(part)) for part in order[: 10 * MOST].split(MOST)]
        )

    def gradients(self, whole: Any, number: int) -> Tensor:
        """Return the gradients (samples, values) of score `number` with respect to the layer's outputs."""
        inputs = self._read(whole)
        return concepts.gradients(self._model, self.layer, lambda: scores(self._call(inputs))[:, number])

    def measured(self, name: str, number: int, gradients: Mapping[str, Tensor]) -> tuple[float, dict[str, float]]:
        """Return the accuracy of vector `number` of a concept, and its TCAV score for each class."""
        draw = np.random.default_rng([self._seed, number, *name.encode()])
        most = max(map(len, self._of_concepts.values())) if name == RANDOM else len(self._of_concepts[name])
        size = min(most, len(self._of_random) // 2)
        rows = torch.from_numpy(draw.permutation(len(self._of_random))[: 2 * size])
        own = self._of_random[rows[size:]] if name == RANDOM else self._of_concepts[name]
        found = concepts.vector(own, self._of_random[rows[:size]], int(draw.integers(2**31)))
        return found.accuracy, {of: concepts.sensitivity(g, found.direction) for of, g in gradients.items()}

    def _read(self, whole: Any) -> Any:
        return divide(whole, self._label).inputs

    @torch.no_grad()
    def _activations(self, batches: list[Any]) -> Tensor:
        of_batches = (concepts.activations(self._model, self.layer, partial(self._call, x)) for x in batches)
        return torch.cat([*of_batches])


def _rows(found: list[Any], names: list[str], classes: list[str]) -> list[dict[str, Any]]:
    """Return a row for each concept and class. The p-value is multiplied by the number of rows (Bonferroni)."""
    rows = []
    for name in names:
        accuracy = [row[2] for row in found if row[0] == name]
        for of in classes:
            own, random = ([row[3][of] for row in found if row[0] == which] for which in (name, RANDOM))
            rows.append(
                {
                    "concept": name,
                    "class": of,
                    "score": float(np.mean(own)),
                    "deviation": float(np.std(own)),
                    "random": float(np.mean(random)),
                    "p": min(1.0, concepts.probability(own, random) * len(names) * len(classes)),
                    "accuracy": float(np.mean(accuracy)),
                }
            )
    return rows
