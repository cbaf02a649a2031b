"""Dividing a model among ranks: the one place that puts stages, shares of layers and their optimizer together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn

from hvd_train import model_state
from hvd_train.config import Config
from hvd_train.errors import UserError
from hvd_train.execution import WholeModel
from hvd_train.models.base import Link
from hvd_train.parallel import optimizer, stages, tensor
from hvd_train.parallel.layout import Mesh
from hvd_train.parallel.pieces import Pieces
from hvd_train.parallel.pipeline import Stage, Tie
from hvd_train.parallel.schedules import SCHEDULES


def divide(whole: WholeModel, mesh: Mesh, config: Config) -> Stage:
    """Cut `whole.model` down to this rank's part of it, and return who runs that; collective.

    Every rank has built all of the model, so that cuts do not change what training starts from: memory peaks here. All ranks
    take over the parameters of rank 0 first. UserError, on all ranks alike, where the model cannot be cut so.
    """
    model, section = whole.model, config.parallel
    _check(config, mesh)
    whole_only = next(iter(model_state.others(model)), None)
    if whole_only is not None:
        raise UserError(
            f"model: '{whole_only}' belongs to the model as a whole, and parallel divides it; keep it in plain buffers, or set "
            "parallel.pipeline and parallel.tensor to 1"
        )
    model_state.broadcast_(model, mesh.all)
    chain = stages.links(model)
    sample, _ = whole.fetch(whole.data.train, torch.tensor([0]))
    cut = stages.stages(model, sample, section.pipeline)
    plan = tensor.plan(model, [[chain[i] for i in part] for part in cut], section.tensor)
    ties = stages.tied(model, chain, cut)
    pieces = Pieces(model, plan.cuts(), ties, mesh)
    own = [chain[i] for i in cut[mesh.place.stage]]
    stages.prune(model, own)
    tensor.apply(plan, model, mesh.tensor)
    return Stage(
        model,
        whole.loss,
        whole.data,
        whole.precision,
        whole.clock,
        links=[_again(link, model) for link in own],
        mesh=mesh,
        pieces=pieces,
        schedule=SCHEDULES[section.schedule],
        micro_batches=config.train.accumulate,
        ties=_ties(ties, model, mesh),
    )


def _check(config: Config, mesh: Mesh) -> None:
    section = config.parallel
    optimizer.check(config.optimizer.name, section.tensor)
    if config.data.partition.options.get("weights") == "auto":
        raise UserError(
            "data.partition.weights: auto measures single ranks, and the model is split between several; "
            "give the weights as a list, or set parallel.pipeline and parallel.tensor to 1"
        )
    if section.pipeline > 1 and not mesh.all.outlives_ranks:
        raise UserError(
            "parallel.pipeline: this engine sends nothing from one rank to another; take --engine mpi, or parallel.tensor instead"
        )


def _again(link: Link, model: nn.Module) -> Link:
    """The link with the module that is at its path by now."""
    return Link(link.paths, model.get_submodule(link.paths[0])) if isinstance(link.run, nn.Module) else link


def _ties(of_names: dict[str, tuple[int, ...]], model: nn.Module, mesh: Mesh) -> Sequence[Tie]:
    """What this rank's stage shares with others; every rank of a pipeline takes part in making every communicator."""
    ties, there = [], dict(model.named_parameters())
    by_stages = sorted(of_names, key=lambda name: (of_names[name], name))
    for users, names in groupby(by_stages, key=of_names.__getitem__):
        member = mesh.place.stage in users
        everybody = len(users) == mesh.layout.pipeline
        comm = mesh.pipeline if everybody else mesh.pipeline.split(int(not member), mesh.place.stage)
        if member:
            ties.append(Tie(comm, [there[name] for name in names]))
    return ties
