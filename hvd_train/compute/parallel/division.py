"""Divides a model among ranks: combines stages, split layers and their optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import nn

from hvd_train.compute.execution import WholeModel
from hvd_train.compute.loss import Loss
from hvd_train.compute.parallel import optimizer, stages, tensor
from hvd_train.compute.parallel.layout import Mesh
from hvd_train.compute.parallel.pipeline import Stage, Tie
from hvd_train.compute.parallel.schedules import SCHEDULES
from hvd_train.compute.parallel.whole_state import WholeState
from hvd_train.config.schema import Config
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError
from hvd_train.models.base import Layer
from hvd_train.state import model_state


def divide(whole: WholeModel, mesh: Mesh, config: Config, sample: Batch) -> Stage:
    """Reduce `whole.model` to this rank's part, and return the execution of that part; collective.

    Every rank has built the whole model, so that the cuts do not change the initial parameters;
    memory use peaks here. All ranks first take over the parameters of rank 0. UserError on all
    ranks if the model cannot be cut as asked.
    """
    model, section = whole.model, config.parallel
    _check(config, mesh, whole.loss)
    _check_extra_state(model)
    model_state.broadcast_(model, mesh.all)
    chain = stages.layers(model)
    cut = stages.stages(model, whole.prepare(sample.whole).inputs, section.pipeline)
    plan = tensor.plan(model, [[chain[i] for i in numbers] for numbers in cut], section.tensor)
    ties = stages.tied(model, chain, cut)
    whole_state = WholeState(model, plan.cuts(), ties, mesh)
    own = [chain[i] for i in cut[mesh.position.stage]]
    stages.prune(model, own)
    tensor.apply(plan, model, mesh.tensor)
    return Stage(
        model,
        whole.loss,
        whole.data,
        whole.precision,
        whole.clock,
        whole.label,
        whole.loader,
        layers=[_with_own_module(layer, model) for layer in own],
        mesh=mesh,
        whole_state=whole_state,
        schedule=SCHEDULES[section.schedule],
        micro_batches=config.train.accumulate,
        ties=_ties(ties, model, mesh),
    )


def _check(config: Config, mesh: Mesh, loss: Loss) -> None:
    section = config.parallel
    if loss.in_model:
        raise UserError(
            f"train.loss: '{config.train.loss.label}' is what the whole model returns, and parallel calls its layers one by "
            "one; take another loss (ddl list losses), or set parallel.pipeline and parallel.tensor to 1"
        )
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


def _check_extra_state(model: nn.Module) -> None:
    name = next(iter(model_state.others(model)), None)
    if name is not None:
        raise UserError(
            f"model: '{name}' belongs to the model as a whole, and parallel divides it; keep it in plain buffers, or set "
            "parallel.pipeline and parallel.tensor to 1"
        )


def _with_own_module(layer: Layer, model: nn.Module) -> Layer:
    """Return `layer` with the module that `tensor.apply` put at its path."""
    return Layer(layer.paths, model.get_submodule(layer.paths[0])) if isinstance(layer.run, nn.Module) else layer


def _ties(stages_of: dict[str, tuple[int, ...]], model: nn.Module, mesh: Mesh) -> Sequence[Tie]:
    """Return the ties of this rank's stage.

    All ranks of a pipeline make each communicator together.
    """
    ties, parameters = [], dict(model.named_parameters())
    by_stages = sorted(stages_of, key=lambda name: (stages_of[name], name))
    for users, names in groupby(by_stages, key=stages_of.__getitem__):
        is_member = mesh.position.stage in users
        is_everybody = len(users) == mesh.layout.pipeline
        comm = mesh.pipeline if is_everybody else mesh.pipeline.split(int(not is_member), mesh.position.stage)
        if is_member:
            ties.append(Tie(comm, [parameters[name] for name in names]))
    return ties
