"""The model of a configuration, and of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvd_train.agents.base import Agent
from hvd_train.agents.greedy import Greedy
from hvd_train.agents.saved import context_of
from hvd_train.config.schema import Config
from hvd_train.data.fitted import spec_of
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.freezing import freeze_
from hvd_train.models.normalised import Normalised
from hvd_train.saved.run import Run
from hvd_train.slim import structure
from hvd_train.state import model_state
from hvd_train.state.generators import seed_generators
from hvd_train.training import checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with the parameters of a checkpoint, on the CPU in float32."""

    module: nn.Module
    spec: DataSpec
    config: Config
    preprocessing: Mapping[str, Any]
    """How a row of the source becomes an input, as in `data.json`."""


def create_model(config: Config, spec: DataSpec) -> nn.Module:
    """Return the model of `config` on the CPU with its initial parameters.

    Its lazy modules have no shapes yet, and its floats the dtypes that its code gives them.
    """
    seed_generators(config.seed)
    model: nn.Module = config.model.create(spec, expected=nn.Module)
    if config.agent is not None and config.agent.normalise_observations:
        model = Normalised(model, spec.input_shape)
    structure.apply_(model, config.compress_model)
    freeze_(model, config.model.freeze)
    return model


def load_model(run: Run) -> LoadedModel:
    """Return the model of `run.checkpoint`; of an agent, the policy of its best actions. No data is read.

    Raise UserError if the checkpoint is damaged, or if the run folder does not describe its data.
    """
    if not run.data:
        raise UserError(f"{run.folder}: data.json is missing, which describes the inputs; expected a run of ddl 0.1")
    spec = spec_of(run.data)
    module = create_model(run.config, spec)
    load_weights_(module, read_weights(run.checkpoint), run.checkpoint)
    if run.config.agent is not None:
        module, spec = _policy(run, module, spec)
    model_state.convert_(module, torch.device("cpu"), torch.float32)
    return LoadedModel(module.eval(), spec, run.config, run.data)


def _policy(run: Run, model: nn.Module, spec: DataSpec) -> tuple[nn.Module, DataSpec]:
    """Return the policy of the agent of a run, and what its outputs are."""
    context, section = context_of(run.data["agent"]), run.config.agent
    assert section is not None
    policy = Greedy(model, section.create(context, expected=Agent), context.actions)
    return policy, replace(spec, outputs=context.actions.choices or context.actions.numbers)


def load_weights_(module: nn.Module, state: Mapping[str, Any], source: Path) -> None:
    """Load what `checkpoint.weights` returned; UserError if it is of another model."""
    model_state.load_(module, state, f"{source} is of another model than config.json describes")


def read_weights(source: Path) -> dict[str, Any]:
    """Return what `load_weights_` loads from a checkpoint; UserError if it is damaged."""
    try:
        return checkpoint.weights(source)
    except ValueError as error:
        raise UserError(f"the checkpoint is damaged: {error}; give another checkpoint of the run") from None
