"""The model of a checkpoint with the data of its run, ready for a task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hvd_train.comm.agree import together
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.compute.clock import Clock
from hvd_train.compute.execution import WholeModel
from hvd_train.config.schema import ParallelSection
from hvd_train.errors import UserError
from hvd_train.rank.build import Built, build
from hvd_train.rank.node import on_node
from hvd_train.rank.task import TaskContext
from hvd_train.saved.model import load_weights_, read_weights
from hvd_train.saved.run import described
from hvd_train.state import packing
from hvd_train.state.checkpoint_folder import run_of
from hvd_train.trained.observations import observed


@dataclass(frozen=True)
class Trained:
    """A model in eval mode with the parameters of a checkpoint, and the data of the run."""

    built: Built
    execution: WholeModel
    """Computes outputs for the samples of a split, in the precision and on the device of the run."""


def restore(context: TaskContext) -> Trained:
    """Return the model of the checkpoint of a task and the data of its run; collective.

    The samples are encoded as in training, whatever files they are from. The model of an agent is the
    policy of its best actions, and its samples are observations (`observations.observed`). Raise
    UserError on all ranks if the data or the checkpoint cannot be read.
    """
    built, config = rebuild(context), context.config
    if built.agent is not None:
        built = observed(built, built.agent, config, context.comm)
    label, loader = config.data.label_key, built.loader
    execution = WholeModel(built.model, built.loss, built.data, built.precision, Clock(), label, loader)
    return Trained(built, execution)


def rebuild(context: TaskContext) -> Built:
    """Return what the run of a task was built of, with the parameters of its checkpoint; collective.

    Each rank holds the whole model in eval mode, also of a run that divided it. Raise UserError on all
    ranks if the data or the checkpoint cannot be read.
    """
    config, comm = context.config.model_copy(update={"parallel": ParallelSection()}), context.comm
    fitted = broadcast_json(comm, together(comm, partial(_fitted, context.checkpoint, comm)))
    built = on_node(comm, partial(build, config, comm, fitted=fitted))
    state = packing.broadcast(comm, together(comm, partial(_read_first, context.checkpoint, comm)))
    load_weights_(built.model, state, context.checkpoint)
    built.model.eval()
    return built


def on_split(trained: Trained, name: str) -> Any:
    """Return the split `name`: 'test', 'train' or one of the further held-out splits; UserError otherwise."""
    data = trained.built.data
    splits = {"test": data.test, "train": data.train, **data.others}
    if name not in splits:
        raise UserError(f"--split: no '{name}' in the data; expected {', '.join(splits)}")
    return splits[name]


def _fitted(source: Path, comm: Communicator) -> dict[str, Any] | None:
    """Return what rank 0 knows of the data of the run of a checkpoint; None on others, and of older runs."""
    folder = run_of(source)
    return described(folder) or None if comm.rank == 0 and folder else None


def _read_first(source: Path, comm: Communicator) -> dict[str, Any] | None:
    return read_weights(source) if comm.rank == 0 else None
