"""Horovod's elastic API: state that survives a failure, and a loop around the training function."""

from hvd_train.torch.elastic.sampler import ElasticSampler
from hvd_train.torch.elastic.state import (
    ModelStateHandler,
    ObjectState,
    OptimizerStateHandler,
    SamplerStateHandler,
    State,
    StateHandler,
    TorchState,
)
from hvd_train.torch.elastic.training import run, run_fn

__all__ = [
    "ElasticSampler", "ModelStateHandler", "ObjectState", "OptimizerStateHandler", "SamplerStateHandler", "State",
    "StateHandler", "TorchState", "run", "run_fn",
]  # fmt: skip
