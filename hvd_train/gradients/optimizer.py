"""The optimizer of a model: who updates which parameters, and the state by their names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.config.schema import OptimizerSection
from hvd_train.errors import UserError
from hvd_train.gradients.groups import Group, Key, keys
from hvd_train.gradients.sparse import OF_ROWS, coalesced, values_of
from hvd_train.state.model_state import sparse_weights

State = dict[str, dict[str, Any]]
"""Optimizer state of whole parameters, by parameter name."""

_IMPLEMENTATIONS = ("fused", "foreach")
"""Options of torch that choose an implementation."""
_UNFUSED = ("capturable", "differentiable")


@dataclass(frozen=True)
class Build:
    """The configured optimizer: class `name` of `torch.optim` with `options`. Adam takes sparse gradients too.

    Parameters in `groups` have the options of these besides, of which the last one counts.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    unscaled: bool = True
    """False if gradients are multiples of the true ones (fp16)."""

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return an optimizer of `parameters`, which are in no group.

        Raise UserError if torch rejects the parameters or the options.
        """
        return self._made(parameters)

    def grouped(self, parameters: Mapping[Key, list[nn.Parameter]]) -> torch.optim.Optimizer:
        """Return an optimizer of `parameters` by their groups; UserError as above."""
        if list(parameters) == [()]:
            return self(parameters[()])
        return self._made([{"params": of, **self.of(key).options} for key, of in parameters.items()])

    def of(self, key: Key) -> Build:
        """Return the optimizer of the parameters in the groups `key`."""
        options = {name: value for number in key for name, value in self.groups[number].options.items()}
        return replace(self, options={**self.options, **options}, groups=())

    def _made(self, parameters: Any) -> torch.optim.Optimizer:
        cls = OF_ROWS.get(self.name) or getattr(torch.optim, self.name)
        options = {**self.options, "fused": True} if self._fuses(parameters) else self.options
        try:
            return without_compiler(partial(cls, parameters, **options))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"optimizer: torch.optim.{self.name} rejects this model or these options: {error}"
            ) from None

    def _fuses(self, parameters: list[Any]) -> bool:
        """Return True if the loop over each parameter is one kernel, although the options do not ask for it.

        torch chooses between its implementations itself on a GPU only. On a CPU, a step of Adam on small
        tensors takes a third of the time. The kernel takes the memory of all tensors for row-major:
        other layouts are left to the loop, and the classes of `OF_ROWS` give it such gradients.
        """
        undecided = all(self.options.get(name) is None for name in _IMPLEMENTATIONS)
        tensors = (p for one in parameters for p in (one["params"] if isinstance(one, dict) else [one]))
        return (
            self.unscaled
            and self.name in OF_ROWS
            and undecided
            and not any(self.options.get(name) for name in _UNFUSED)
            and all(p.device.type == "cpu" and p.is_floating_point() and p.is_contiguous() for p in tensors)
        )


def builder(section: OptimizerSection, precision: str) -> Build:
    """Return the optimizer that `section` configures.

    UserError if it cannot train in `precision`.
    """
    if section.name == "LBFGS" and precision == "fp16":
        raise UserError(
            "optimizer.name: LBFGS evaluates a step more than once and cannot scale losses; use bf16 or fp32"
        )
    if section.name == "LBFGS" and section.groups:
        raise UserError("optimizer.groups: LBFGS has the same options for all parameters; leave groups out")
    options = _converted(section.name, section.options)
    return Build(section.name, options, groups_of(section), unscaled=precision != "fp16")


def groups_of(section: OptimizerSection) -> list[Group]:
    """Return the groups of parameters that `section` configures."""
    return [Group(group.patterns, group.kinds, _converted(section.name, group.options)) for group in section.groups]


def _converted(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` from YAML as the optimizer `name` takes them."""
    defaults = inspect.signature(getattr(torch.optim, name)).parameters
    return {option: _as_of(defaults[option].default, value) for option, value in options.items()}


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


def check_step(model: nn.Module, build: Build) -> None:
    """Raise UserError, with a parameter's name, if the optimizer of `build` cannot train `model`.

    Takes a trial step on small parameters of every dtype, number of dimensions, layout of gradients
    and group in the model.
    """
    sparse, groups = sparse_weights(model), keys(model, build.groups)
    kinds: dict[Any, tuple[str, nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.dim(), p in sparse, groups[name]), (name, p))
    if not kinds:
        raise UserError("model: no parameter requires a gradient; expected at least one to train")
    for (dtype, dims, is_sparse, key), (name, p) in kinds.items():
        optimizer, _ = _trial(build.of(key), dims, dtype, p.device, sparse=is_sparse)
        try:
            optimizer.step(_no_loss)  # type: ignore[arg-type, return-value]
        except (RuntimeError, ValueError, NotImplementedError) as error:
            kind = f"{'sparse ' * is_sparse}{str(dtype).removeprefix('torch.')}"
            raise UserError(
                f"optimizer.name: {type(optimizer).__name__} cannot train '{name}', whose gradients are {kind} of {dims} "
                f"dimensions ({error}); {_way_out(sparse=is_sparse, name=type(optimizer).__name__)}"
            ) from None


def _way_out(*, sparse: bool, name: str) -> str:
    if sparse:
        return "take Adam, AdamW, Adagrad or SGD without momentum and weight_decay, or set sparse: false"
    if name == "SparseAdam":
        return "take Adam, which treats sparse gradients as SparseAdam does"
    return "take another optimizer (ddl list optimizers)"


def entries(
    build: Build, parameters: Mapping[str, Tensor], device: torch.device, groups: Mapping[str, Key] | None = None
) -> dict[str, set[str]] | None:
    """Return the names of the state entries of each parameter, found by trial steps.

    `groups` has those of each parameter. None for LBFGS, whose state belongs to all parameters together.
    """
    if build.name == "LBFGS":
        return None
    kinds = {name: (p.dim(), (groups or {}).get(name, ())) for name, p in parameters.items()}
    of_kind = {}
    for dims, key in set(kinds.values()):
        optimizer, small = _trial(build.of(key), dims, torch.float32, device, sparse=build.name == "SparseAdam")
        optimizer.step()
        of_kind[dims, key] = set(optimizer.state[small])
    return {name: of_kind[kind] for name, kind in kinds.items()}


def _trial(
    build: Build, dims: int, dtype: torch.dtype, device: torch.device, *, sparse: bool
) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    """Return an optimizer of one small parameter with a gradient of zeros, and the parameter."""
    small = nn.Parameter(torch.zeros([2] * dims, dtype=dtype, device=device))
    small.grad = torch.zeros_like(small).to_sparse(1) if sparse else torch.zeros_like(small)
    return build([small]), small


def _no_loss() -> Tensor:
    return torch.zeros(())


def clip(gradients: list[Tensor], square: float, max_norm: float) -> None:
    """Scale `gradients` so that the norm of all gradients is at most `max_norm`. Sparse ones are coalesced.

    `square` is the sum of the squares of all gradients. `gradients` may be some of them. As in
    torch, a norm that is not a number makes all gradients NaN.
    """
    scale = max_norm / (math.sqrt(square) + 1e-6)
    if gradients and not scale >= 1:
        torch._foreach_mul_([values_of(gradient) for gradient in gradients], scale)


def squared_norm(gradient: Tensor) -> Tensor:
    """Return the sum of the squares of a dense or sparse gradient, 0-dim in float64."""
    values = coalesced(gradient) if gradient.is_sparse else gradient
    square: Tensor = torch.linalg.vector_norm(values_of(values)).double().square()
    return square


class ModelOptimizer:
    """Every rank updates all trained parameters of `model`.

    A parameter that is unfrozen later joins in `adopt`.
    """

    def __init__(self, model: nn.Module, build: Build) -> None:
        check_step(model, build)
        self.model = model
        self.names = {p: name for name, p in model.named_parameters()}
        self.groups = keys(model, build.groups)
        """The groups of each parameter, by name."""
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self._keys = sorted({(), *self.groups.values()})
        self.torch = build.grouped(self._by_group([p for p in model.parameters() if p.requires_grad]))

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
        trained = [p for p in self.model.parameters() if p.grad is not None]
        if not any(p.grad.is_sparse for p in trained if p.grad is not None):
            nn.utils.clip_grad_norm_(trained, max_norm)
            return
        for p in trained:
            p.grad = coalesced(p.grad) if p.grad is not None and p.grad.is_sparse else p.grad
        clip([p.grad for p in trained if p.grad is not None], self.square(), max_norm)

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

    def _take(self, parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Return what this rank updates of newly trained `parameters`, each after the parameter that it is of."""
        return [(p, p) for p in parameters]

    def _by_group(self, parameters: list[nn.Parameter]) -> dict[Key, list[nn.Parameter]]:
        """Return what this rank updates of newly trained `parameters`, by group."""
        found: dict[Key, list[nn.Parameter]] = {key: [] for key in self._keys}
        for whole, own in self._take(parameters):
            found[self.groups[self.names[whole]]].append(own)
        return found

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        self._frozen = [p for p in self._frozen if not any(p is new for new in parameters)]
        taken = self._by_group(parameters) if parameters else {}
        for group, own in zip(self.torch.param_groups, taken.values(), strict=False):
            group["params"] += own

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.torch.param_groups for p in group["params"]]
