"""Attribute outputs of the model of a checkpoint to the inputs of single samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hvd_train.comm.agree import together
from hvd_train.config import plugins
from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.data import preprocessing
from hvd_train.data.batch import Batch, divide
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.state import model_state
from hvd_train.trained.explaining.collect import collect
from hvd_train.trained.explaining.explainer import Explained, Explainer, Known
from hvd_train.trained.explaining.means import Means
from hvd_train.trained.explaining.names import Outputs
from hvd_train.trained.explaining.sanity import SIMILAR
from hvd_train.trained.explaining.views import Baseline
from hvd_train.trained.restore import Trained, on_split, restore

METHODS = "hvd_train.trained.explaining.methods"


def create(
    *,
    method: Annotated[str, "how outputs are attributed"] = "integrated_gradients",
    samples: Annotated[PositiveInt, "samples that are explained, at random positions"] = 16,
    split: Annotated[str, "test, train, or the name of another held-out split"] = "test",
    output: Annotated[str | None, "class or output that is explained; by default the highest score"] = None,
    baseline: Annotated[Literal["auto", "zero", "mean"], "what stands for an absent input"] = "auto",
) -> Explain:
    return Explain(method, samples, split, output, baseline)


class Explain:
    """Each rank explains every n-th of the samples, with random numbers that are those of the sample."""

    def __init__(self, method: str, samples: int, split: str, output: str | None, baseline: Baseline) -> None:
        self._method, self._samples, self._split = method, samples, split
        self._output, self._baseline = output, baseline

    def run(self, context: TaskContext) -> dict[str, Any]:
        comm, trained = context.comm, restore(context)
        model_state.convert_(trained.built.model, torch.device("cpu"), torch.float32)
        explained = together(comm, partial(self._explained, context, trained))
        found = collect(comm, explained, context.folder)
        return {
            "method": self._method,
            "checkpoint": str(context.checkpoint),
            "split": self._split,
            "baseline": self._baseline,
            "task": trained.built.data.spec.task,
            "promises_completeness": plugins.create(METHODS, self._method).completes,
            "similar": SIMILAR,
            "samples": found,
        }

    def _explained(self, context: TaskContext, trained: Trained) -> list[Explained]:
        """Explain the samples of this rank."""
        config, data, comm = context.config, trained.built.data, context.comm
        split = on_split(trained, self._split)
        positions = self._positions(split, config.seed)
        read = partial(divide, label=config.data.label_key, keep_targets=trained.built.loss.in_model)
        outputs = Outputs(data)
        chosen = None if self._output is None else outputs.number(self._output)
        means = Means(data.train, read, config.seed)
        known = Known(data.spec, preprocessing.document(data), outputs.name, outputs.decode, means)
        method = plugins.create(METHODS, self._method)
        explainer = Explainer(trained.built.model, method, known, baseline=self._baseline, seed=config.seed)
        own = positions[comm.rank :: comm.size]
        found = []
        with context.progress("explain", len(own)) as advance:
            for position in own:
                whole = split.batch(torch.tensor([position]))
                if whole is not None:
                    batch = read(whole)
                    found.append(explainer.explain(batch.inputs, _label(batch), position, chosen))
                advance()
        return found

    def _positions(self, split: Any, seed: int) -> list[int]:
        if not hasattr(split, "__len__"):
            raise UserError(
                f"--split: '{self._split}' is a stream, whose samples have no positions; take another split"
            )
        if not len(split):
            raise UserError(
                f"--split: '{self._split}' has no samples; take another split, or give --data test_path=..."
            )
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        return sorted(order[: self._samples].tolist())


def _label(batch: Batch) -> int | None:
    """Return the class of a batch of one, which is the last one of a sequence; None without classes."""
    targets = batch.targets
    is_class = isinstance(targets, torch.Tensor) and not targets.is_floating_point() and targets.numel() > 0
    return int(targets.flatten()[-1]) if is_class else None
