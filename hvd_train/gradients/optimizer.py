"""The optimizer of a model: who updates which parameters, and the state by their names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.config.schema import OptimizerSection
from hvd_train.errors import UserError
from hvd_train.state.model_state import sparse_weights

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
State = dict[str, dict[str, Any]]
"""Optimizer state of whole parameters, by parameter name."""


@dataclass(frozen=True)
class Build:
    """The configured optimizer: class `name` of `torch.optim` with `options`.

    Calling it with parameters builds one.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Raise UserError if torch rejects the parameters or the options."""
        cls = getattr(torch.optim, self.name)
        try:
            return without_compiler(partial(cls, parameters, **self.options))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"optimizer: torch.optim.{self.name} rejects this model or these options: {error}"
            ) from None


def builder(section: OptimizerSection, precision: str) -> Build:
    """Return the optimizer that `section` configures.

    UserError if it cannot train in `precision`.
    """
    if section.name == "LBFGS" and precision == "fp16":
        raise UserError(
            "optimizer.name: LBFGS evaluates a step more than once and cannot scale losses; use bf16 or fp32"
        )
    defaults = inspect.signature(getattr(torch.optim, section.name)).parameters
    options = {name: _as_of(defaults[name].default, value) for name, value in section.options.items()}
    return Build(section.name, options)


def _as_of(default: Any, value: Any) -> Any:
    """Convert `value` from YAML to the type of `default`: float to int, list to tuple."""
    if isinstance(value, float) and isinstance(default, int) and value.is_integer():
        return int(value)
    return tuple(value) if isinstance(value, list) else value


def without_compiler(build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Call `build` without importing torch's compiler, which takes about a second.

    torch's optimizers import it to stay out of compiled graphs. ddl never steps from a graph, and
    the step runs no hooks.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        setattr(method, "__dynamo_disable", method)
    optimizer = build()
    if not optimizer.defaults.get("differentiable"):
        step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
    return optimizer


def check_step(model: nn.Module, build: Make) -> None:
    """Raise UserError, with a parameter's name, if the optimizer of `build` cannot train `model`.

    Takes a trial step on small parameters of every dtype, number of dimensions and layout of
    gradients in the model.
    """
    sparse = sparse_weights(model)
    kinds: dict[Any, tuple[str, nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.dim(), p in sparse), (name, p))
    if not kinds:
        raise UserError("model: no parameter requires a gradient; expected at least one to train")
    for (dtype, dims, is_sparse), (name, p) in kinds.items():
        optimizer, _ = _trial(build, dims, dtype, p.device, sparse=is_sparse)
        try:
            optimizer.step(_no_loss)  # type: ignore[arg-type, return-value]
        except (RuntimeError, ValueError, NotImplementedError) as error:
            kind = f"{'sparse ' * is_sparse}{str(dtype).removeprefix('torch.')}"
            raise UserError(
                f"optimizer.name: {type(optimizer).__name__} cannot train '{name}', whose gradients are {kind} of {dims} "
                f"dimensions ({error}); take another optimizer (ddl list optimizers)"
            ) from None


def entries(build: Build, parameters: Mapping[str, Tensor], device: torch.device) -> dict[str, set[str]] | None:
    """Return the names of the state entries of each parameter, found by trial steps.

    None for LBFGS, whose state belongs to all parameters together.
    """
    if build.name == "LBFGS":
        return None
    of_dims = {}
    for dims in {p.dim() for p in parameters.values()}:
        optimizer, small = _trial(build, dims, torch.float32, device, sparse=build.name == "SparseAdam")
        optimizer.step()
        of_dims[dims] = set(optimizer.state[small])
    return {name: of_dims[p.dim()] for name, p in parameters.items()}


def _trial(
    build: Make, dims: int, dtype: torch.dtype, device: torch.device, *, sparse: bool
) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    """Return an optimizer of one small parameter with a gradient of zeros, and the parameter."""
    small = nn.Parameter(torch.zeros([2] * dims, dtype=dtype, device=device))
    small.grad = torch.zeros_like(small).to_sparse() if sparse else torch.zeros_like(small)
    return build([small]), small


def _no_loss() -> Tensor:
    return torch.zeros(())


def clip(gradients: list[Tensor], square: float, max_norm: float) -> None:
    """Scale `gradients` so that the norm of all gradients is at most `max_norm`.

    `square` is the sum of the squares of all gradients. `gradients` may be some of them. As in
    torch, a norm that is not a number makes all gradients NaN.
    """
    scale = max_norm / (math.sqrt(square) + 1e-6)
    if gradients and not scale >= 1:
        torch._foreach_mul_(gradients, scale)


def squared_norm(gradient: Tensor) -> Tensor:
    """Return the sum of the squares of a dense or sparse gradient, 0-dim in float64."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    square: Tensor = torch.linalg.vector_norm(values).double().square()
    return square


class ModelOptimizer:
    """Every rank updates all trained parameters of `model`.

    A parameter that is unfrozen later joins in `adopt`.
    """

    def __init__(self, model: nn.Module, build: Make) -> None:
        check_step(model, build)
        self.model = model
        self.names = {p: name for name, p in model.named_parameters()}
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self.torch = build(self._take([p for p in model.parameters() if p.requires_grad]))

    def adopt(self) -> None:
        """Train the parameters that have been unfrozen since the last call, on all ranks alike."""
        unfrozen = [p for p in self._frozen if p.requires_grad]
        if unfrozen:
            self._grow(unfrozen)

    def square(self) -> float:
        """Return the squared norm of the gradient of the step; collective."""
        return math.fsum(float(squared_norm(p.grad)) for p in self.model.parameters() if p.grad is not None)

    def clip(self, max_norm: float) -> None:
        """Scale the gradients so that their global norm is at most `max_norm`."""
        nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def agree_(self, found_inf: Tensor) -> None:
        """Set `found_inf` on every rank that must skip the step with another rank; collective."""

    def state(self) -> State:
        """Return the state of all parameters; collective."""
        state: dict[int, Any] = self.torch.state_dict()["state"]
        return {self.names[p]: state[i] for i, p in enumerate(self._parameters()) if i in state}

    def load_state(self, state: State) -> None:
        """Restore what `state` returned, possibly under another number of ranks."""
        self._grow([p for p in self._frozen if self.names[p] in state])
        self.torch.load_state_dict({**self.torch.state_dict(), "state": self._numbered(state)})

    def _numbered(self, state: State) -> dict[int, dict[str, Any]]:
        """Return the state that this rank needs, by parameter numbers of its torch optimizer."""
        names = [self.names[p] for p in self._parameters()]
        return {i: state[name] for i, name in enumerate(names) if name in state}

    def _take(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Return what this rank updates of newly trained `parameters`."""
        return parameters

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        self._frozen = [p for p in self._frozen if not any(p is new for new in parameters)]
        self.torch.param_groups[0]["params"] += self._take(parameters) if parameters else []

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.torch.param_groups for p in group["params"]]
