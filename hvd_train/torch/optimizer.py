"""A torch optimizer that steps on the gradients of all ranks."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.ops import shares
from hvd_train.torch.compression import Compression
from hvd_train.torch.functions import broadcast_object
from hvd_train.torch.gradient import ReductionOptions
from hvd_train.torch.mpi_ops import Adasum, Average, size
from hvd_train.torch.process_sets import ProcessSet, global_process_set
from hvd_train.torch.reducer import AdasumReducer, GradientReducer, NoReducer, OptimizerReducer

Closure = Callable[[], Any]
Names = Mapping[nn.Parameter, str]


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: int = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
) -> torch.optim.Optimizer:
    """Wrap `optimizer` so that it steps on the gradients of all ranks.

    The result keeps its class, parameters, options and state. Gradients are reduced with `op`
    during the backward pass, and `step` waits for the reduction. To change gradients before the
    step, for example by clipping, call `synchronize()` first and then `step()` within
    `skip_synchronize()`. A parameter without a gradient contributes zeros. With hvd.Adasum, each
    rank steps on its own gradients, and the steps are combined.

    `named_parameters` gives a unique name to every parameter, the same on every rank.
    `backward_passes_per_step` gradients add up before they are reduced. `gradient_predivide_factor`
    f divides by f before the sum and by size / f after it. `groups` are lists of parameters to
    reduce together, or a number of groups. `sparse_as_dense` reduces sparse gradients as dense
    ones. Raise ValueError if an option is invalid.
    """
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor needs op=hvd.Average")
    if num_groups != 0:
        warnings.warn("num_groups is deprecated: use groups", DeprecationWarning, stacklevel=2)
        groups = num_groups if groups is None else groups
    if groups is not None and not (isinstance(groups, list) or groups > 0):
        raise ValueError(f"groups: expected a positive number, or a list of lists of parameters, got {groups!r}")
    if backward_passes_per_step <= 0:
        raise ValueError(f"backward_passes_per_step: expected 1 or more, got {backward_passes_per_step}")
    names = _names(optimizer, named_parameters)
    _check_groups(groups)
    reduction = ReductionOptions(op, gradient_predivide_factor, compression, sparse_as_dense, process_set)
    if op == Adasum and size() > 1:
        if process_set is not global_process_set:
            raise NotImplementedError("Adasum supports the global process set only")
        return _wrapped(optimizer, _Adasum, AdasumReducer(names, reduction), names, reduction, backward_passes_per_step)
    alone = size() == 1 and os.environ.get("HOROVOD_ELASTIC") != "1"
    if alone or not process_set.included():
        return _wrapped(optimizer, _Distributed, NoReducer(), names, reduction, backward_passes_per_step)
    reducer = GradientReducer(names, reduction, _grouped(groups, names, process_set), backward_passes_per_step)
    return _wrapped(optimizer, _Distributed, reducer, names, reduction, backward_passes_per_step)


class _Distributed(torch.optim.Optimizer):
    """The methods that precede those of the wrapped optimizer's class."""

    _reducer: OptimizerReducer
    backward_passes_per_step: int
    _parameter_names: dict[nn.Parameter, str]
    """Scripts read this attribute of Horovod's optimizer."""
    _should_synchronize: bool
    _synchronized: bool

    def set_backward_passes_per_step(self, passes: int) -> None:
        self.backward_passes_per_step = passes
        self._reducer.set_passes(passes)

    def synchronize(self) -> None:
        """Wait until all gradients are reduced."""
        self._reducer.reduce()
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within this context `step` does not reduce gradients, because `synchronize` has done so."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """Step on reduced gradients.

        Gradients that `closure` computes are reduced after each call.
        """
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after optimizer.synchronize() "
                    "reduces the gradients a second time; call step() within the context",
                    stacklevel=2,
                )
            if closure is None or self._reducer.under_way:
                self.synchronize()
            closure = closure and self._synchronizing(closure, again=not self._synchronized)
        loss = super().step(closure)
        self._synchronized = False
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # otherwise torch runs step hooks here and in the wrapped step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients.

        Raise AssertionError if some have been computed and not reduced yet.
        """
        if self._reducer.under_way:
            raise AssertionError(
                "zero_grad() between backward() and step() or synchronize() clears gradients that are being reduced; "
                "call it after step()"
            )
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        names = {p: _unnamed(number, i) for i, p in enumerate(self.param_groups[number]["params"])}
        self._parameter_names |= names
        self._reducer.add(names)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the wrapped optimizer and drop incomplete reductions."""
        self._reducer.reset()
        self._should_synchronize, self._synchronized = True, False
        super().load_state_dict(state_dict)

    def _synchronizing(self, closure: Closure, *, again: bool) -> Closure:
        """Return `closure` followed by `synchronize`, with `again` even if it computed no gradient."""

        def evaluate() -> Any:
            loss = closure()
            if again or self._reducer.under_way:
                self.synchronize()
            return loss

        return evaluate


class _Adasum(_Distributed):
    """Each rank steps on its own gradients, then all apply the combined step (arXiv 2006.02924)."""

    _reducer: AdasumReducer

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        raise AssertionError("with op=hvd.Adasum, step() always synchronizes; skip_synchronize() is not supported")
        yield

    def synchronize(self) -> None:
        """Do nothing: Adasum combines steps, not gradients."""

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        self._reducer.keep()
        loss = super(_Distributed, self).step(closure)
        self._reducer.reduce()
        return loss

    step.hooked = True  # type: ignore[attr-defined]


def _wrapped(
    optimizer: torch.optim.Optimizer,
    kind: type[_Distributed],
    reducer: OptimizerReducer,
    names: Names,
    reduction: ReductionOptions,
    passes: int,
) -> torch.optim.Optimizer:
    """Return an optimizer of a class that derives from `kind` and the class of `optimizer`.

    It shares options, parameters and state with `optimizer`.
    """
    own = type(optimizer)
    wrapped: Any = object.__new__(type(own.__name__, (kind, own), {"__module__": __name__}))
    wrapped.__dict__.update(optimizer.__dict__)
    # A learning rate scheduler replaces `step` of its instance; the copy needs that of the class.
    wrapped.__dict__.pop("step", None)
    wrapped._reducer, wrapped.backward_passes_per_step = reducer, passes
    wrapped._should_synchronize, wrapped._synchronized = True, False
    wrapped._parameter_names = dict(names)
    wrapped.op, wrapped.process_set = reduction.op, reduction.process_set
    wrapped.gradient_predivide_factor, wrapped.sparse_as_dense = reduction.predivide, reduction.sparse_as_dense
    distributed: torch.optim.Optimizer = wrapped
    return distributed


def _names(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]] | None
) -> dict[nn.Parameter, str]:
    """Return the name of every parameter of `optimizer`, in its order."""
    groups = [group["params"] for group in optimizer.param_groups]
    if named is None:
        return {p: _unnamed(g, i) for g, params in enumerate(groups) for i, p in enumerate(params)}
    pairs = list(named)
    if not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("named_parameters: expected tuples of name and parameter, such as model.named_parameters()")
    repeated = sorted(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    if repeated:
        raise ValueError(f"named_parameters: names must be unique, and these occur twice: {', '.join(repeated)}")
    known = {p: name for name, p in pairs}
    parameters = [p for params in groups for p in params]
    nameless = [tuple(p.shape) for p in parameters if p not in known]
    if nameless:
        raise ValueError(
            f"named_parameters: {len(nameless)} of the optimizer's parameters are not named, those of shapes "
            f"{', '.join(map(str, nameless))}; give model.named_parameters()"
        )
    return {p: known[p] for p in parameters}


def _unnamed(group: int, index: int) -> str:
    return f"allreduce.noname.{group}.{index}"


def _check_groups(groups: int | list[list[Tensor]] | None) -> None:
    if not isinstance(groups, list):
        return
    members = [p for group in groups for p in group]
    if not all(isinstance(p, Tensor) for p in members):
        raise ValueError("groups: expected lists of torch.Tensor, got other objects in them")
    if len(set(members)) < len(members):
        raise ValueError("groups: a parameter may occur once only")


def _grouped(
    groups: int | list[list[Tensor]] | None, names: Names, process_set: ProcessSet
) -> list[list[nn.Parameter]] | None:
    """Return the lists of parameters to reduce together, in the same order on every rank.

    The order of parameters in the optimizers may differ between ranks. For a number of groups, each
    has consecutive parameters in the order of the first rank.
    """
    if groups is None:
        return None
    trained = {name: p for p, name in names.items() if p.requires_grad}
    if isinstance(groups, list):
        chosen = [{id(p) for p in group} for group in groups]
        return [[p for _, p in sorted(trained.items()) if id(p) in members] for members in chosen]
    order = broadcast_object(list(trained), (process_set.ranks or [0])[0], process_set=process_set)
    ends = [0, *itertools.accumulate(shares(len(order), groups))]
    parts = [order[start:end] for start, end in itertools.pairwise(ends) if end > start]
    return [[trained[name] for name in part if name in trained] for part in parts]
