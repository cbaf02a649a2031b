"""Builds the data, model and loss of one rank, before anything is written.

This is what fails if the user's input is bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.agents import saved
from hvd_train.agents.base import Agent, AgentContext
from hvd_train.agents.loss import AgentLoss
from hvd_train.comm.communicator import Communicator
from hvd_train.compute import loss
from hvd_train.compute.calling import arguments, caller
from hvd_train.compute.metrics import build as metrics
from hvd_train.compute.metrics.episodes import episode_meters
from hvd_train.compute.metrics.meter import Meter
from hvd_train.compute.precision import Precision
from hvd_train.config import targets
from hvd_train.config.resolve import target_sections
from hvd_train.config.schema import Config, DataSection
from hvd_train.config.section import TARGET
from hvd_train.data import samples
from hvd_train.data.base import Dataset
from hvd_train.data.batch import Batch, divide
from hvd_train.data.environments.base import Environments
from hvd_train.data.fitted import Fitted
from hvd_train.data.load import load
from hvd_train.data.loading.loader import Loader, chosen
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.nesting import map_tensors, shown
from hvd_train.errors import UserError
from hvd_train.gradients import groups
from hvd_train.gradients.optimizer import groups_of
from hvd_train.models.normalised import Normalised
from hvd_train.saved.model import create_model
from hvd_train.state import model_state
from hvd_train.state.generators import seed_generators


@dataclass
class Built:
    """What `build` made of the configuration."""

    data: Dataset
    model: nn.Module
    loss: loss.Loss
    precision: Precision
    device: torch.device
    sample: Batch
    """A batch of the first training sample, on the CPU."""
    loader: Loader
    meters: Sequence[Meter] = ()
    """What evaluations measure beside the loss."""
    agent: Agent | None = None
    """What learns in the environments that the data are; None if they are samples."""


def build(config: Config, comm: Communicator, node: Node = ALONE, fitted: Fitted | None = None) -> Built:
    """Build data, model and loss of one rank; UserError for bad input.

    `fitted` is the `data.json` of a run, by which the samples are encoded (`data.load`). Uses no
    collective but those of `node`, whose ranks share data that must be decoded.
    """
    device = _device(config.train.device, comm)
    precision = Precision(config.train.precision, device)
    for _, target in target_sections(config):
        targets.resolve(target)
    data = _data(config, comm, node, fitted)
    agent, data = _agent(config, data, fitted)
    made = AgentLoss(agent) if agent else loss.build(config.train, data, device, config.data.label_key)
    first = samples.first_batch(data.train)
    if first is None:
        raise UserError("data: the training set is empty")
    loader = _loader(config.data, data, device)
    sample = divide(first, config.data.label_key, keep_targets=made.in_model)
    model = _model(config, data, comm, sample.inputs)
    if agent is not None:
        _check_arguments(config, model, agent)
    model_state.convert_(model, device, precision.dtype)
    _check_gradients(config, model)
    meters = episode_meters() if agent else metrics.build(config.train, data.spec, device, sample.targets)
    return Built(data, model, made, precision, device, sample, loader, meters, agent)


_NOT_OF_AGENTS = {
    "data": ("partition", "collate", "transforms", "label_key", "bucket", "on_error"),
    "train": ("loss", "metrics", "adversarial", "eval_samples", "noise_scale"),
    "parallel": ("pipeline", "tensor"),
    "compress_model": ("distill", "quantize"),
}
"""Options by section that are for samples, not for environments."""


def _agent(config: Config, data: Dataset, fitted: Fitted | None) -> tuple[Agent | None, Dataset]:
    """Return the agent, and the data with what it needs of the model.

    Raise UserError if the data are no environments, or options do not fit them.
    """
    environments = isinstance(data.train, Environments)
    if config.agent is None:
        if environments:
            raise UserError(f"agent: is missing, and '{config.data.label}' has environments, in which an agent learns")
        if config.train.env_steps is not None:
            raise UserError("train.env_steps: there are no environments; give the length in 'epochs' or 'steps'")
        return None, data
    if not environments:
        raise UserError(f"agent: it learns in environments, and '{config.data.label}' has samples; leave agent out")
    for section, options in _NOT_OF_AGENTS.items():
        given = [name for name in options if name in getattr(config, section).model_fields_set]
        if given:
            raise UserError(
                f"{section}.{given[0]}: it is for samples, and an agent learns in environments; leave it out"
            )
    context = AgentContext(data.train.actions, data.train.observed, data.train.states)
    if fitted:
        saved.check_same(context, fitted["agent"], config.data.label)
    agent: Agent = config.agent.create(context, expected=Agent)
    facts = {**data.preprocessing, "agent": saved.facts_of(context)}
    return agent, replace(data, spec=replace(data.spec, outputs=agent.outputs), preprocessing=facts)


def _loader(section: DataSection, data: Dataset, device: torch.device) -> Loader:
    """Return the loader; it starts its workers, which import while the model is built."""
    workers = chosen(section.workers, data.train, section.batch_size)
    loader = Loader(workers, section.worker_type, section.prefetch, pin=device.type == "cuda")
    for split in (data.train, data.test, *data.others.values()):
        loader.prepare(split)
    return loader


def _data(config: Config, comm: Communicator, node: Node, fitted: Fitted | None) -> Dataset:
    seed_generators(config.seed)
    data = load(config.data, config.seed, node, fitted)
    if isinstance(data.train, samples.StreamSplit):
        _check_stream(config, data.train, comm.size)
    return data


def _check_stream(config: Config, train: samples.StreamSplit, ranks: int) -> None:
    """Raise UserError for options that need positions or a length, and for too many ranks."""
    if config.train.steps is None:
        raise UserError("train.steps: is missing, and the training data has no length; give the number of steps")
    if config.data.partition.member != "random":
        raise UserError(
            f"data.partition: '{config.data.partition.label}' needs samples with positions, and the training data is a "
            "stream, of which each rank reads its own part; leave partition out"
        )
    train.at(0).raw(0, ranks // (config.parallel.pipeline * config.parallel.tensor))


def _model(config: Config, data: Dataset, comm: Communicator, sample: Any) -> nn.Module:
    """Build the model on the CPU, in the dtypes that its code gives it, for inputs as `sample`."""
    _check_task(config, data, sample)
    model = create_model(config, data.spec)
    _check_inputs(config, data, model, sample)
    single = map_tensors(lambda x: x.float() if x.is_floating_point() else x, sample)
    model_state.materialise(model, lambda: caller(model)(single))
    model_state.check(model)
    groups.check(model, groups_of(config.optimizer))
    if comm.size > 1:
        model_state.check_alone(model)
    return model


def _check_arguments(config: Config, model: nn.Module, agent: Agent) -> None:
    """Raise UserError if the model does not take what the agent trains it on."""
    inner = model.model if isinstance(model, Normalised) else model
    _, taken = arguments(inner)({name: torch.empty(0) for name in agent.takes})
    if set(agent.takes) - set(taken):
        assert config.agent is not None
        raise UserError(
            f"model: '{config.model.label}' does not take ({', '.join(agent.takes)}), which the agent "
            f"'{config.agent.label}' trains; take 'soft_actor_critic', or a model.target whose forward does"
        )


def _check_gradients(config: Config, model: nn.Module) -> None:
    """Raise UserError for gradients that loss scaling cannot take."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    name = next((name for name, p in trained.items() if p.is_complex()), None)
    if name and config.train.precision == "fp16":
        raise UserError(
            f"train.precision: '{name}' is complex, and torch cannot scale losses for complex gradients; use bf16 or fp32"
        )


def _check_task(config: Config, data: Dataset, x: Any) -> None:
    """Raise UserError if a built-in model cannot know what to predict for the inputs `x`."""
    if config.model.member != TARGET and data.spec.task == "other" and not data.spec.vocabularies:
        raise _unknown(config, x)


def _check_inputs(config: Config, data: Dataset, model: nn.Module, x: Any) -> None:
    """Raise UserError if a built-in model does not take the inputs `x`."""
    if config.model.member == TARGET or data.spec.task == "language" or data.spec.vocabularies:
        return
    if not isinstance(x, Tensor):
        positional, keywords = arguments(model)(x)
        if len(positional) + len(keywords) < 2:
            raise _unknown(config, x)
    elif not x.is_floating_point():
        raise UserError(
            f"data: inputs are of type {x.dtype}, and the model '{config.model.name}' takes floating point numbers; "
            "convert them where the samples are made, as by x.float() / 255"
        )


def _unknown(config: Config, x: Any) -> UserError:
    return UserError(
        f"model: '{config.model.name}' takes one tensor for each sample, with a class or numbers to predict, and a "
        f"batch of the data has {shown(x)} as inputs; set model.target to a model that takes them"
    )


def _device(wanted: str, comm: Communicator) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "train.device: 'cuda' is not available to this torch; expected a CUDA build and a GPU, or 'cpu'"
        )
    count = torch.cuda.device_count()
    if comm.local_size > count:
        raise UserError(
            f"train.device: {comm.local_size} ranks on a host with {count} GPU(s); start fewer, or set train.device=cpu"
        )
    torch.cuda.set_device(comm.local_rank)
    return torch.device("cuda", comm.local_rank)
