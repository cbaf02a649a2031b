"""Wires the trainer of one rank together: strategy, sampler, execution and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hvd_train.agents.collector import Collector
from hvd_train.agents.cut import Cut
from hvd_train.agents.order import RolloutOrder
from hvd_train.agents.player import Player
from hvd_train.agents.rewards import RewardScale
from hvd_train.comm.agree import together
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.compute.acting import Acting
from hvd_train.compute.calling import caller
from hvd_train.compute.clock import Clock
from hvd_train.compute.compiling import compile_
from hvd_train.compute.domain import domain
from hvd_train.compute.execution import Execution, WholeModel
from hvd_train.compute.loss import OwnLoss
from hvd_train.compute.metrics.accuracy import Accuracy
from hvd_train.compute.metrics.episodes import episode_meters
from hvd_train.compute.metrics.loss import MeanLoss
from hvd_train.compute.metrics.meter import Meter
from hvd_train.compute.parallel.division import divide
from hvd_train.compute.parallel.layout import Mesh, layout
from hvd_train.config.schema import Config
from hvd_train.data import samples
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import map_tensors, shown
from hvd_train.data.partitioning.base import Partitioner, for_split
from hvd_train.data.partitioning.bucketing import Buckets
from hvd_train.errors import UserError
from hvd_train.gradients.compression.base import Compressor
from hvd_train.gradients.optimizer import builder
from hvd_train.models import batch_norm
from hvd_train.monitor.base import Sink
from hvd_train.rank import slim
from hvd_train.rank.alike import check_alike
from hvd_train.rank.build import Built
from hvd_train.state.generators import seed_generators
from hvd_train.sync.base import Context, SyncStrategy, unreported
from hvd_train.sync.membership import Share
from hvd_train.training import adversary, noise
from hvd_train.training.ema import ParameterAverage
from hvd_train.training.evaluation import Evaluate, score
from hvd_train.training.group import Group, synchronous
from hvd_train.training.loop import Trainer, never
from hvd_train.training.sampler import Sampler


@dataclass(frozen=True)
class Surroundings:
    """What a trainer needs of the process that it runs in."""

    clock: Clock = field(default_factory=Clock)
    sinks: Sequence[Sink] = ()
    checkpoints: Path | None = None
    """The folder that checkpoints go to; None if none are saved."""
    source: Path | None = None
    """The run folder or checkpoint that the run resumes from."""
    fusion_bytes: int | None = None
    """What an earlier start of this run measured for `fusion_mb: auto`."""
    stop: Callable[[], bool] = never
    """Returns True once this rank has received a signal to stop."""
    report: Callable[[int], None] = unreported
    """Reports to the command that a rank is lost."""


def assemble(config: Config, comm: Communicator, built: Built, around: Surroundings = Surroundings()) -> Trainer:
    """Wire the trainer of one rank; collective.

    Raise UserError if ranks have different data or models. Afterwards the generators of ranks
    differ, so that their noise does. Ranks that share layers keep equal generators: what all of
    them compute must drop out alike.
    """
    built = together(comm, partial(slim.prepare, config, built))
    check_alike(comm, built.data, built.model, built.device)
    cut = layout(comm.size, config.parallel.pipeline, config.parallel.tensor)
    mesh = Mesh(comm, cut) if cut.divides_model else None
    label, loader = config.data.label_key, built.loader
    whole = WholeModel(built.model, built.loss, built.data, built.precision, around.clock, label, loader)
    together(comm, partial(_check_loss, whole, built))
    perturbs = together(comm, partial(_adversary, config, built))
    acting = Acting(built.model, built.precision)
    player = Player(built.agent, acting) if built.agent else None
    strategy = _strategy(config, comm, mesh, whole, (player or whole).evaluate, around)
    order = RolloutOrder()
    sampler = _sampler(config, comm, built, strategy, order)
    execution: Execution = divide(whole, mesh, config, built.sample) if mesh else whole
    if config.train.noise_scale:
        noise.check(config, strategy)
    optimizer = strategy.optimizer(execution.model, builder(config.optimizer, config.train.precision))
    average = _average(config, execution.model, strategy)
    slimming = slim.slimming(config, execution.model, strategy, average)
    if config.train.compile:
        compile_(execution.model, config)
    seed_generators(config.seed * 65537 + comm.rank // config.parallel.tensor + 1)
    return Trainer(
        config=config,
        group=_group(comm, mesh, strategy),
        data=built.data,
        execution=execution,
        optimizer=execution.whole_optimizer(optimizer),
        sampler=sampler,
        strategy=strategy,
        precision=built.precision,
        average=average,
        slimming=slimming,
        meters=built.meters if built.agent else [MeanLoss(built.loss), *built.meters],
        sinks=around.sinks,
        checkpoints=around.checkpoints,
        stop=around.stop,
        adversary=perturbs,
        collector=_collector(config, comm, built, acting, strategy, order) if built.agent else None,
        player=player,
        counts=built.loss.count(built.sample) is not None or samples.skips(built.data.train),
    )


def _collector(
    config: Config, comm: Communicator, built: Built, acting: Acting, strategy: SyncStrategy, order: RolloutOrder
) -> Collector:
    section, agent, environments = config.agent, built.agent, built.data.train
    assert section is not None
    assert agent is not None
    world = strategy.members.world
    # A client that is in no federated round yet has its environments all the same.
    share = strategy.members.share(0) or Share(world.rank, world.size)
    return Collector(
        environments,
        agent,
        acting,
        world,
        share,
        order,
        RewardScale(section.reward_scale, agent.discount if section.normalise_rewards else None),
        seed=config.seed,
        batch_size=config.data.batch_size * config.train.accumulate,
        env_steps=config.train.env_steps,
        alone=strategy.learns_alone,
        cut=_cut(config, comm, strategy, environments.cut_at, share.workers),
    )


def _cut(config: Config, comm: Communicator, strategy: SyncStrategy, at: float | None, workers: int) -> Cut | None:
    if at is None or comm.size == 1:
        return None
    world = strategy.members.world
    if world.size < comm.size:
        raise UserError(f"data.cut_at: under '{config.sync.label}' no worker waits for another; leave it out")
    return Cut(world, at, workers)


def _adversary(config: Config, built: Built) -> adversary.Adversary | None:
    section = config.train.adversarial
    if section is None:
        return None
    adversary.check(config, built.loss)
    try:
        of_inputs = domain(built.data, config.data.label_key)
    except UserError as error:
        raise UserError(f"{adversary.OPTION}: {error}") from None
    return adversary.Adversary(section, built.model, built.loss, built.precision, of_inputs, config.seed)


def _average(config: Config, model: nn.Module, strategy: SyncStrategy) -> ParameterAverage | None:
    ema = config.train.ema
    return None if ema is None else ParameterAverage(ema, model, strategy.view)


def _group(comm: Communicator, mesh: Mesh | None, strategy: SyncStrategy) -> Group:
    """Return who takes part in what. The ranks of a divided model all take their steps together."""
    world = strategy.members.world
    if mesh is not None:
        return Group(comm, comm, evaluates_with=world, observes=True, gather=partial(gather_json, comm))
    observes = world.size == comm.size or comm.rank == 0
    return Group(comm, world, evaluates_with=world, observes=observes, gather=strategy.members.gather)


def _strategy(
    config: Config,
    comm: Communicator,
    mesh: Mesh | None,
    whole: WholeModel,
    evaluate: Evaluate,
    around: Surroundings,
) -> SyncStrategy:
    fusion = config.sync.fusion_mb
    meters: list[Meter] = episode_meters() if config.agent else [Accuracy(), MeanLoss(whole.loss)]
    scored = partial(score, whole.model, evaluate, whole.data, synchronous(comm), meters)
    context = Context(
        mesh.data if mesh else comm,
        config.sync.compression.create(expected=Compressor),
        around.fusion_bytes if fusion == "auto" else int(fusion * 2**20),
        config.seed,
        split=mesh is not None,
        folder=around.checkpoints.parent if around.checkpoints else None,
        source=around.source,
        report=around.report,
        score=scored if len(whole.data.test) and not mesh else None,
    )
    strategy: SyncStrategy = config.sync.create(context, expected=SyncStrategy)
    return strategy


def _sampler(config: Config, comm: Communicator, built: Built, strategy: SyncStrategy, order: RolloutOrder) -> Sampler:
    """Return the sampler.

    Raise UserError if a rank cannot have its samples, or if they break the strategy's guarantee.
    """
    made: Partitioner = order if built.agent else config.data.partition.create(expected=Partitioner)
    partitioner = for_split(made, built.data.train)
    if config.data.bucket is not None:
        lengths = built.data.train.lengths.numpy()
        partitioner = Buckets(lengths, config.data.bucket, config.train.accumulate, config.seed).of(partitioner)
    sampler = Sampler(
        built.data.train.labels,
        partitioner,
        strategy.members.share,
        strategy.members.world,
        config.data.batch_size,
        config.train.accumulate,
        config.seed,
    )
    own, batch_size = sampler.check(comm)
    together(comm, partial(_check_batches, built, own, batch_size))
    if strategy.view.guarantees_privacy:
        _check_privacy(config, partitioner)
    return sampler


def _check_loss(whole: WholeModel, built: Built) -> None:
    """Raise UserError if the loss does not take what the model returns for the first samples.

    Held-out samples are checked too: transforms may have changed the targets of training samples.
    """
    if isinstance(built.loss, OwnLoss):
        return
    held_out = [part for part in (built.data.test, *built.data.others.values()) if len(part)]
    first = [built.sample.whole, *map(samples.first_batch, held_out)]
    built.model.eval()
    for sample in first:
        if sample is not None:
            _check_loss_of(whole.prepare(sample), built)


def _check_loss_of(batch: Batch, built: Built) -> None:
    with torch.no_grad(), built.precision.forward():
        try:
            outputs = caller(built.model)(batch.inputs)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            # A model that fails on any sample does so in its first step, with a traceback.
            if not built.loss.in_model:
                return
            raise UserError(
                "train.loss: the loss of the model needs a model that takes the targets too, and it fails with "
                f"{shown(batch.inputs)} ({error}); let forward() take them, or take another loss (ddl list losses)"
            ) from error
        built.loss.check(outputs, batch)


def _check_batches(built: Built, own: int, batch_size: int) -> None:
    """Raise UserError if a batch of one sample reaches a layer that needs more."""
    if not batch_norm.leaves_one(own, batch_size):
        return
    inputs = map_tensors(built.precision.inputs, built.sample.inputs)
    with built.precision.forward():
        batch_norm.check(built.model, lambda model: caller(model)(inputs), own, batch_size)


def _check_privacy(config: Config, partitioner: Partitioner) -> None:
    """Raise UserError if samples, or figures about them, reach another client."""
    if not partitioner.fixed:
        raise UserError(
            f"data.partition: '{config.data.partition.label}' assigns samples to other clients in every epoch, so that "
            "sync.noise would protect nobody; take by_group, contiguous, round_robin, dirichlet or by_label"
        )
    if config.data.bucket is not None:
        raise UserError(
            "data.bucket: batches follow from the lengths of all clients' samples, which sync.noise does not cover; leave it out"
        )
    for option in ("class_weights", "pos_weight"):
        if config.train.loss.options.get(option) == "balanced":
            raise UserError(
                f"train.loss.{option}: 'balanced' counts the labels of all clients, which sync.noise does not cover; "
                "give the weights as a list that does not depend on their data, or leave it out"
            )
