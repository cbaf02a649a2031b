"""Horovod's elastic API: state that survives failures, and a retry loop for training."""

from hvd_train.torch.elastic.sampler import ElasticSampler
from hvd_train.torch.elastic.state import (
    ModelStateHandler,
    ObjectState,
    OptimizerStateHandler,
    SamplerStateHandler,
    State,
    StateHandler,
    TorchState,
    get_handler_registry,
    set_handler_registry,
)
from hvd_train.torch.elastic.training import run, run_fn
from hvd_train.torch.exceptions import HorovodInternalError, HostsUpdatedInterrupt

__all__ = [
    "ElasticSampler", "HorovodInternalError", "HostsUpdatedInterrupt", "ModelStateHandler", "ObjectState",
    "OptimizerStateHandler", "SamplerStateHandler", "State", "StateHandler", "TorchState", "get_handler_registry", "run",
    "run_fn", "set_handler_registry",
]  # fmt: skip
