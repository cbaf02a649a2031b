"""A torch optimizer whose step is that of all ranks together."""

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

from hvd_train.comm.base import shares
from hvd_train.torch._reduce import GradientReducer, Rule
from hvd_train.torch.compression import Compression
from hvd_train.torch.functions import broadcast_object
from hvd_train.torch.mpi_ops import Adasum, Average, grouped_allreduce_, size
from hvd_train.torch.process_sets import ProcessSet, global_process_set

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
    """`optimizer` with its own class, parameters, options and state, which steps by gradients of all ranks.

    Gradients are reduced by `op` while backward computes them, and `step` waits for that. Who changes gradients before,
    say by clipping, calls `synchronize()` first, and `step()` within `skip_synchronize()`. A parameter without a
    gradient takes part with zeros. With hvd.Adasum, ranks step on their own and what they have moved is combined.

    `named_parameters` name all parameters, each differently, the same on every rank; `backward_passes_per_step`
    gradients add up before they are reduced; `gradient_predivide_factor` f divides by f before the sum and by
    size / f after it; `groups` are parameters to be reduced together, as lists, or as a number of them;
    `sparse_as_dense` sums sparse gradients as dense ones. ValueError says which of these cannot be used.
    """
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor is possible with op=hvd.Average only")
    if num_groups != 0:
        warnings.warn("num_groups is deprecated: use groups", DeprecationWarning, stacklevel=2)
        groups = num_groups if groups is None else groups
    if groups is not None and not (isinstance(groups, list) or groups > 0):
        raise ValueError(f"groups: expected a positive number, or a list of lists of parameters, got {groups!r}")
    if backward_passes_per_step <= 0:
        raise ValueError(f"backward_passes_per_step: expected 1 or more, got {backward_passes_per_step}")
    names = _names(optimizer, named_parameters)
    _check_groups(groups)
    rule = Rule(op, gradient_predivide_factor, compression, sparse_as_dense, process_set)
    if op == Adasum and size() > 1:
        if process_set is not global_process_set:
            raise NotImplementedError("Adasum is possible for the global process set only")
        return _wrapped(optimizer, _Adasum, _Deltas(names, rule), names, rule, backward_passes_per_step)
    alone = size() == 1 and os.environ.get("HOROVOD_ELASTIC") != "1"
    if alone or not process_set.included():
        return _wrapped(optimizer, _Distributed, _Nothing(), names, rule, backward_passes_per_step)
    reducer = GradientReducer(names, rule, _grouped(groups, names, process_set), backward_passes_per_step)
    return _wrapped(optimizer, _Distributed, reducer, names, rule, backward_passes_per_step)


class _Distributed(torch.optim.Optimizer):
    """What comes before the wrapped optimizer's class in the order of its methods."""

    _reducer: GradientReducer | _Deltas | _Nothing
    backward_passes_per_step: int
    _parameter_names: dict[nn.Parameter, str]
    """Under the name that scripts read it by in Horovod."""
    _should_synchronize: bool
    _synchronized: bool

    def set_backward_passes_per_step(self, passes: int) -> None:
        self.backward_passes_per_step = passes
        self._reducer.set_passes(passes)

    def synchronize(self) -> None:
        """Return once all gradients are reduced."""
        self._reducer.reduce()
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within this, `step` takes gradients as they are: `synchronize` was called."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """The wrapped optimizer's, on reduced gradients; those that `closure` computes are reduced each time."""
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after optimizer.synchronize() "
                    "reduces the gradients a second time; put step() into the context",
                    stacklevel=2,
                )
            if closure is None or self._reducer.under_way:
                self.synchronize()
            closure = closure and self._synchronizing(closure, again=not self._synchronized)
        loss = super().step(closure)
        self._synchronized = False
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch would run the hooks of a step here, and in the wrapped one

    def zero_grad(self, set_to_none: bool = True) -> None:
        """AssertionError where gradients have been computed and not yet been reduced."""
        if self._reducer.under_way:
            raise AssertionError(
                "zero_grad() between backward() and step() or synchronize() would clear gradients on their way"
            )
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        names = {p: _unnamed(number, i) for i, p in enumerate(self.param_groups[number]["params"])}
        self._parameter_names |= names
        self._reducer.add(names)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The wrapped optimizer's; what is under way is forgotten."""
        self._reducer.reset()
        self._should_synchronize, self._synchronized = True, False
        super().load_state_dict(state_dict)

    def _synchronizing(self, closure: Closure, *, again: bool) -> Closure:
        """`closure`, and then `synchronize`: `again` even where it computed no gradient."""

        def evaluate() -> Any:
            loss = closure()
            if again or self._reducer.under_way:
                self.synchronize()
            return loss

        return evaluate


class _Adasum(_Distributed):
    """Each rank steps by its own gradients; then all move by the combination of their steps (arXiv 2006.02924)."""

    _reducer: _Deltas

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        raise AssertionError("with op=hvd.Adasum, step() itself synchronizes, and that cannot be skipped")
        yield

    def synchronize(self) -> None:
        """Nothing: there is nothing to combine before the step."""

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        self._reducer.keep()
        loss = super(_Distributed, self).step(closure)
        self._reducer.reduce()
        return loss

    step.hooked = True  # type: ignore[attr-defined]


class _Deltas:
    """How far parameters move in a step, combined over ranks."""

    under_way = False

    def __init__(self, names: Names, rule: Rule) -> None:
        self._parameters = sorted(names, key=names.__getitem__)
        self._name, self._rule = min(names.values(), default="adasum"), rule
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def set_passes(self, passes: int) -> None:
        pass

    def add(self, names: Names) -> None:
        self._parameters += names

    def reset(self) -> None:
        self._before = []

    def keep(self) -> None:
        """Where the parameters are before the step."""
        self._before = [(p, p.detach().clone()) for p in self._parameters if p.requires_grad]

    @torch.no_grad()
    def reduce(self) -> None:
        """Move them from there by the combination of all ranks' steps."""
        compression, pairs = self._rule.compression, self._before
        sent = [compression.compress(p - before) for p, before in pairs]
        if sent:
            grouped_allreduce_([delta.contiguous() for delta, _ in sent], name=f"adasum.{self._name}", op=Adasum)
        for (p, before), (delta, context) in zip(pairs, sent, strict=True):
            p.copy_(before + compression.decompress(delta, context))
        self.reset()


class _Nothing:
    """Of the one rank there is, or of one that is no part of the process set."""

    under_way = False

    def set_passes(self, passes: int) -> None:
        pass

    def add(self, names: Names) -> None:
        pass

    def reset(self) -> None:
        pass

    def reduce(self) -> None:
        pass


def _wrapped(
    optimizer: torch.optim.Optimizer,
    kind: type[_Distributed],
    reducer: GradientReducer | _Deltas | _Nothing,
    names: Names,
    rule: Rule,
    passes: int,
) -> torch.optim.Optimizer:
    """The same options, parameters and state under a class that is the wrapped one's and `kind`."""
    own = type(optimizer)
    wrapped: Any = object.__new__(type(own.__name__, (kind, own), {"__module__": __name__}))
    wrapped.__dict__.update(optimizer.__dict__)
    # Whoever counts steps, as learning rate schedulers do, has replaced the method of the wrapped one.
    wrapped.__dict__.pop("step", None)
    wrapped._reducer, wrapped.backward_passes_per_step = reducer, passes
    wrapped._should_synchronize, wrapped._synchronized = True, False
    wrapped._parameter_names = dict(names)
    wrapped.op, wrapped.process_set = rule.op, rule.process_set
    wrapped.gradient_predivide_factor, wrapped.sparse_as_dense = rule.predivide, rule.sparse_as_dense
    distributed: torch.optim.Optimizer = wrapped
    return distributed


def _names(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]] | None
) -> dict[nn.Parameter, str]:
    """The name of every parameter of `optimizer`, in its order."""
    groups = [group["params"] for group in optimizer.param_groups]
    if named is None:
        return {p: _unnamed(g, i) for g, params in enumerate(groups) for i, p in enumerate(params)}
    pairs = list(named)
    if not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("named_parameters: expected tuples of a name and a parameter, as of model.named_parameters()")
    repeated = sorted(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    if repeated:
        raise ValueError(f"named_parameters: names must be unique, and these are not: {', '.join(repeated)}")
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
        raise ValueError("groups: expected lists of torch.Tensor, and there is something else in them")
    if len(set(members)) < len(members):
        raise ValueError("groups: a parameter can be in them once only")


def _grouped(
    groups: int | list[list[Tensor]] | None, names: Names, process_set: ProcessSet
) -> list[list[nn.Parameter]] | None:
    """Lists of parameters to be reduced together, in the same order on every rank, whose optimizers may have them in others.

    A number of groups are consecutive parameters, in the order of the first rank.
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
