"""Wires `compress_model` into a run: initial parameters, teacher, pruning and quantisation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from hvd_train.config import targets
from hvd_train.config.schema import Config
from hvd_train.data import preprocessing
from hvd_train.errors import UserError
from hvd_train.rank.build import Built
from hvd_train.saved.model import load_model, read_weights
from hvd_train.saved.run import Run, find_run
from hvd_train.slim.distillation import Distillation
from hvd_train.slim.pruner import Pruner
from hvd_train.slim.ranges import Ranges
from hvd_train.slim.slimming import Slimming
from hvd_train.slim.structure import initialise_
from hvd_train.state import model_state
from hvd_train.sync.base import SyncStrategy
from hvd_train.training.ema import ParameterAverage

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def prepare(config: Config, built: Built) -> Built:
    """Return `built` with the parameters of `init`, and a loss with the teacher.

    Each rank reads the run folders itself. Raise UserError if they do not fit.
    """
    section = config.compress_model
    if not section.active:
        return built
    if config.parallel.pipeline * config.parallel.tensor > 1:
        raise UserError(
            "compress_model: parallel divides the layers that it changes among ranks; leave compress_model out, or set "
            "parallel.pipeline and parallel.tensor to 1"
        )
    if section.init is not None:
        source = find_run(Path(section.init)).checkpoint
        initialise_(built.model, read_weights(source), str(source))
    return built if section.distill is None else replace(built, loss=_with_teacher(config, built))


def slimming(config: Config, model: nn.Module, strategy: SyncStrategy, average: ParameterAverage | None) -> Slimming:
    """Return what prunes and quantises `model`; UserError if `strategy` cannot."""
    section, world = config.compress_model, strategy.members.world
    pruner = ranges = None
    if section.prune is not None:
        if world is not strategy.comm:
            raise UserError(
                f"compress_model.prune: ranks of sync.strategy '{config.sync.label}' do not wait for one another, so that they "
                "cannot drop the same weights; take a synchronous strategy (docs/strategies.md), or leave prune out"
            )

        def copies() -> Iterator[tuple[str, Tensor]]:
            return chain(strategy.view.copies(), average.copies() if average is not None else ())

        pruner = Pruner(section.prune, model, world, strategy.view.agreed, copies)
    if section.quantize is not None:
        if strategy.view.confidential:
            raise UserError(
                "compress_model.quantize: ranks would tell one another the ranges of activations, which noise and secure sums "
                "do not cover; leave quantize out"
            )
        ranges = Ranges(model, world, strategy.members.synchronises_at)
    return Slimming(pruner, ranges)


def _with_teacher(config: Config, built: Built) -> Distillation:
    section = config.compress_model.distill
    assert section is not None
    teacher = _teacher(section.teacher, built)
    model_state.convert_(teacher, built.device, built.precision.dtype)
    ignored = config.train.loss.options.get("ignore_index", -100)
    of_numbers = built.data.spec.task == "regression"
    return Distillation(section, built.loss, teacher.eval(), of_numbers=of_numbers, ignore_index=ignored)


def _teacher(named: str, built: Built) -> nn.Module:
    """Return the model that a run folder, a checkpoint or a target `named` makes."""
    if not _TARGET.fullmatch(named):
        return _trained_teacher(find_run(Path(named)), built)
    function = targets.resolve(named)
    arguments = [built.data.spec] if targets.positional(function)[:1] == ["spec"] else []
    made = targets.call(named, function, arguments, {})
    if not isinstance(made, nn.Module):
        raise UserError(
            f"compress_model.distill.teacher: '{named}' returned {type(made).__name__}, expected a torch.nn.Module"
        )
    return made


def _trained_teacher(run: Run, built: Built) -> nn.Module:
    """Return the model of `run`; UserError if its inputs were made in another way."""
    found = preprocessing.first_difference(run.data, built.data) if run.data else None
    if found is not None:
        raise UserError(
            f"compress_model.distill.teacher: {run.folder}: {found} here; the teacher would see other inputs than in its own "
            "run: expected the same data options"
        )
    return load_model(run).module
