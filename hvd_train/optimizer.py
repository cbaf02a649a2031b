"""A torch optimizer as the trainer uses it: whoever updates which parameters, state goes by the parameters' names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.config import OptimizerSection
from hvd_train.errors import UserError
from hvd_train.model_state import sparse_weights

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
State = dict[str, dict[str, Any]]
"""By parameter name, what the optimizer remembers of the whole parameter."""


def without_compiler(build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer of `build`, which does not import torch's compiler to be left out of graphs.

    That would be a second of every rank's start. Nothing here calls it from a graph; its step runs no hooks.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        setattr(method, "__dynamo_disable", method)
    optimizer = build()
    if not optimizer.defaults.get("differentiable"):
        step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
    return optimizer


def builder(section: OptimizerSection, precision: str) -> Build:
    """What makes the optimizer that `section` describes; UserError where torch refuses it, also when it is called."""
    if section.name == "LBFGS" and precision == "fp16":
        raise UserError(
            "optimizer.name: LBFGS evaluates a step more than once and cannot scale losses; use bf16 or fp32"
        )
    cls = getattr(torch.optim, section.name)
    defaults = inspect.signature(cls).parameters
    options = {name: _as_of(defaults[name].default, value) for name, value in section.options.items()}

    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            return without_compiler(partial(cls, parameters, **options))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"optimizer: {section.name} refuses this model or these options: {error}") from None

    return build


def _as_of(default: Any, value: Any) -> Any:
    """`value`, which came from YAML as a list or a float, in the type of an option's `default`: some are counts."""
    if isinstance(value, float) and isinstance(default, int) and value.is_integer():
        return int(value)
    return tuple(value) if isinstance(value, list) else value


def entries(build: Build, parameters: Mapping[str, Tensor], device: torch.device) -> dict[str, set[str]] | None:
    """The names under which the optimizer of `build` remembers something of each parameter, found by a step on small ones.

    None for LBFGS, whose state is of all parameters together.
    """
    small = {p.dim(): nn.Parameter(torch.zeros([2] * p.dim(), device=device)) for p in parameters.values()}
    if not small:
        return {}
    optimizer = build(list(small.values()))
    if isinstance(optimizer, torch.optim.LBFGS):
        return None
    for p in small.values():
        p.grad = torch.zeros_like(p)
        if isinstance(optimizer, torch.optim.SparseAdam):
            p.grad = p.grad.to_sparse()
    optimizer.step()
    return {name: set(optimizer.state[small[p.dim()]]) for name, p in parameters.items()}


def kind(model: nn.Module, build: Build) -> str:
    """The name of the torch optimizer that `build` makes for `model`."""
    return type(build([p for p in model.parameters() if p.requires_grad])).__name__


def check_step(model: nn.Module, build: Build) -> None:
    """Raise UserError, with a parameter's name, if the optimizer cannot step on gradients of the kinds that `model` has.

    It takes a trial step on small zeros of every dtype, number of dimensions and layout of gradients.
    """
    sparse = sparse_weights(model)
    kinds: dict[Any, tuple[str, nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.dim(), p in sparse), (name, p))
    for (dtype, dims, is_sparse), (name, p) in kinds.items():
        small = nn.Parameter(torch.zeros([2] * dims, dtype=dtype, device=p.device))
        optimizer = build([small])
        small.grad = torch.zeros_like(small).to_sparse() if is_sparse else torch.zeros_like(small)
        try:
            optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
        except (RuntimeError, ValueError, NotImplementedError) as error:
            kind = f"{'sparse ' * is_sparse}{str(dtype).removeprefix('torch.')}"
            raise UserError(
                f"optimizer.name: {type(optimizer).__name__} cannot train '{name}', whose gradients are {kind} of {dims} "
                f"dimensions ({error}); take another optimizer (ddl list optimizers)"
            ) from None


def clip(gradients: list[Tensor], square: Tensor, max_norm: float) -> None:
    """Scale `gradients`, a part of those whose squares sum to `square`, such that the norm of all is at most `max_norm`.

    As in torch, a norm that is no number makes all of them so.
    """
    scale = max_norm / (math.sqrt(float(square)) + 1e-6)
    if gradients and not scale >= 1:
        torch._foreach_mul_(gradients, scale)


class ModelOptimizer:
    """Every rank updates all parameters of `model` that are trained; one that is unfrozen later joins when it is adopted."""

    def __init__(self, model: nn.Module, build: Build) -> None:
        check_step(model, build)
        self.model = model
        self.names = {p: name for name, p in model.named_parameters()}
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self.torch = build(self._take([p for p in model.parameters() if p.requires_grad]))

    def adopt(self) -> None:
        """Train from now on what has been unfrozen since the last call, on all ranks alike."""
        unfrozen = [p for p in self._frozen if p.requires_grad]
        if unfrozen:
            self._grow(unfrozen)

    def clip(self, max_norm: float) -> None:
        """Scale the gradients such that their global norm is at most `max_norm`."""
        nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        """Let a rank that skips a step for overflow take along those that must skip it too."""

    def state(self) -> State:
        """The state of all parameters; collective."""
        state: dict[int, Any] = self.torch.state_dict()["state"]
        return {self.names[p]: state[i] for i, p in enumerate(self._parameters()) if i in state}

    def load_state(self, state: State) -> None:
        """Take over what `state` returned, possibly under another number of ranks."""
        self._grow([p for p in self._frozen if self.names[p] in state])
        self.torch.load_state_dict({**self.torch.state_dict(), "state": self._numbered(state)})

    def _numbered(self, state: State) -> dict[int, dict[str, Any]]:
        """What of `state` this rank's torch optimizer needs, by the numbers that it gives parameters."""
        names = [self.names[p] for p in self._parameters()]
        return {i: state[name] for i, name in enumerate(names) if name in state}

    def _take(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """What of newly trained parameters this rank updates."""
        return parameters

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        self._frozen = [p for p in self._frozen if not any(p is new for new in parameters)]
        self.torch.param_groups[0]["params"] += self._take(parameters) if parameters else []

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.torch.param_groups for p in group["params"]]
