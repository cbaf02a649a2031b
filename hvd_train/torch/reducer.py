"""Reduction of an optimizer's gradients over ranks, from the hook of a gradient to `synchronize`.

A request is issued when its last gradient is complete, and its name identifies it. Ranks may differ
in the order of gradients and in the parameters they use. The first step has one request per
parameter. Then the ranks exchange which gradients are sparse, and from the second step on they fuse
the dense ones. On one host all gradients of a dtype form one request, which the waiting thread
carries out. On several hosts a few requests overlap with the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import ClassVar, Protocol
from zlib import crc32

import torch
from torch import Tensor, nn

from hvd_train.gradients.buckets import plan
from hvd_train.torch.gradient import Gradient, GradientGroup, ReductionOptions
from hvd_train.torch.mpi_ops import Adasum, Sum, allreduce_async, cross_size, grouped_allreduce_, synchronize
from hvd_train.torch.process_sets import ProcessSet

MULTI_HOST_BYTES = 8 << 20
"""Largest number of bytes of a request on several hosts. Requests of this size start early and
still use the full bandwidth of the network."""

_ORDER_BITS = 0xFFFFFF
"""Mask of the hash of the parameters' order: the sum of its squares over all ranks fits an
int64."""

_FROZEN = 1 << 20
"""Summand of a frozen parameter in the sum of ranks with a sparse gradient."""

TOO_MANY_PASSES = (
    "a gradient was computed more than backward_passes_per_step times before step() or synchronize(); "
    "increase backward_passes_per_step to accumulate gradients on each rank first"
)


class OptimizerReducer(Protocol):
    """The reduction of an optimizer's gradients or steps."""

    under_way: bool
    """True if a gradient of the next step has been computed."""

    def set_passes(self, passes: int) -> None:
        """Set the number of backward passes per step."""

    def add(self, names: Mapping[nn.Parameter, str]) -> None:
        """Add parameters with their names."""

    def reset(self) -> None:
        """Drop incomplete reductions."""

    def reduce(self) -> None:
        """Reduce over ranks, and return when the results are stored."""


class DeferredSum:
    """The sum of `summand` over all ranks, which is awaited when it is first read."""

    _pending: ClassVar[dict[str, DeferredSum]] = {}
    """Sums by name. Optimizers of models with equal parameter names use the same name."""

    def __init__(self, summand: Tensor, name: str, process_set: ProcessSet) -> None:
        earlier = self._pending.get(name)
        if earlier is not None:
            _ = earlier.total
        self._handle = allreduce_async(summand, name=name, op=Sum, process_set=process_set)
        self._pending[name] = self

    @cached_property
    def total(self) -> Tensor | None:
        """The sum, or None if hvd has been shut down since."""
        total: Tensor | None = synchronize(self._handle)
        return total


class GradientReducer:
    """Reduces all gradients of an optimizer.

    `groups` are lists of parameters that share a request.
    """

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        reduction: ReductionOptions,
        groups: Iterable[Sequence[nn.Parameter]] | None,
        passes: int,
    ) -> None:
        self._reduction, self._passes = reduction, passes
        self._frozen = dict(names)
        self._groups: list[GradientGroup] = []
        self._fusion_done = groups is not None
        self._candidates: list[Gradient] = []
        self._sum: DeferredSum | None = None
        self.under_way = False
        for group in groups or ():
            self._register([p for p in group if p in self._frozen], together=True)
        self._register(self._frozen)

    def set_passes(self, passes: int) -> None:
        self._passes = passes
        self.reset()

    def add(self, names: Mapping[nn.Parameter, str]) -> None:
        self._frozen |= names

    def reset(self) -> None:
        self.under_way = False
        for group in self._groups:
            group.expect(self._passes)

    @torch.no_grad()
    def reduce(self) -> None:
        """Issue the remaining groups, wait for all of them, and store the gradients."""
        self._fuse()
        self._register(self._frozen)
        for group in self._groups:
            if not group.issued:
                group.issue(self._reduction)
        for group in self._groups:
            group.collect(self._reduction)
        if not self._fusion_done:
            self._exchange()
        self.reset()

    def _register(self, parameters: Iterable[nn.Parameter], *, together: bool = False) -> None:
        """Register hooks for the parameters that are trained, and put their gradients into groups."""
        trained = [p for p in parameters if p.requires_grad]
        gradients = [Gradient(p, self._frozen.pop(p)) for p in trained]
        for gradient in gradients:
            gradient.passes_left = self._passes
            gradient.parameter.register_post_accumulate_grad_hook(partial(_complete, weakref.ref(self), gradient))
        for members in [gradients] if together and gradients else [[g] for g in gradients]:
            self._groups.append(GradientGroup(members, members[0].name))

    def complete(self, gradient: Gradient) -> None:
        """Record that a backward pass has computed `gradient`.

        Issue its group if it is complete.
        """
        if gradient.passes_left == 0:
            raise AssertionError(TOO_MANY_PASSES)
        self._fuse()
        self.under_way = True
        gradient.passes_left -= 1
        if gradient.passes_left == 0:
            group = gradient.group
            group.missing -= 1
            if group.missing == 0:
                with torch.no_grad():
                    group.issue(self._reduction)

    def _exchange(self) -> None:
        """Start the exchange of the gradients that cannot be fused.

        No rank waits for it in this step.
        """
        self._candidates = [group.gradients[0] for group in self._groups]
        names = [g.name for g in self._candidates]
        order = crc32("\n".join(names).encode()) & _ORDER_BITS
        sparse = [g.sparse and not self._reduction.sparse_as_dense for g in self._candidates]
        unfit = [s + _FROZEN * (not g.parameter.requires_grad) for s, g in zip(sparse, self._candidates, strict=True)]
        name = f"{min(names)}.fuse" if names else "fuse"
        self._sum = DeferredSum(torch.tensor([1, order, order**2, *unfit]), name, self._reduction.process_set)

    def _fuse(self) -> None:
        """Fuse the gradients that are dense on all ranks, after an exchange of all ranks.

        A rank that has joined takes part in a later exchange. Fused gradients are identified by
        position, so ranks with parameters in different orders fuse none.
        """
        if self._sum is None:
            return
        total, self._sum = self._sum.total, None
        if total is None:
            return
        ranks, order, square, *unfit = total.tolist()
        if ranks == self._reduction.process_set.size():
            self._fusion_done = True
            same_order = ranks * square == order**2  # Cauchy-Schwarz: equal only if all summands are equal
            for gradient, count in zip(self._candidates, unfit, strict=True):
                gradient.sparse_elsewhere = same_order and count % _FROZEN > 0
            fusible = [g for g, count in zip(self._candidates, unfit, strict=True) if same_order and not count]
            rest = [group for group in self._groups if group.gradients[0] not in fusible]
            self._groups = [*_fused(fusible), *rest]
            self.reset()


def _complete(reducer: weakref.ref[GradientReducer], gradient: Gradient, _: Tensor) -> None:
    """The hook of a parameter. The parameter may outlive the optimizer."""
    alive = reducer()
    if alive is not None:
        alive.complete(gradient)


def _fused(gradients: Sequence[Gradient]) -> list[GradientGroup]:
    parameters = [g.parameter for g in gradients]
    sizes = [p.numel() * p.element_size() for p in parameters]
    one_host = cross_size() == 1
    limit = sum(sizes) if one_host else MULTI_HOST_BYTES
    groups = plan(sizes, [(p.dtype, p.device) for p in parameters], limit)
    members = [[gradients[i] for i in group] for group in groups]
    names = [f"{m[0].name}...{m[-1].name}" if len(m) > 1 else m[0].name for m in members]
    return [GradientGroup(m, name, fused=True, only=one_host) for m, name in zip(members, names, strict=True)]


class AdasumReducer:
    """Combines the steps of all ranks with Adasum (arXiv 2006.02924)."""

    under_way = False

    def __init__(self, names: Mapping[nn.Parameter, str], reduction: ReductionOptions) -> None:
        self._parameters = sorted(names, key=names.__getitem__)
        self._name, self._reduction = min(names.values(), default="adasum"), reduction
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def set_passes(self, passes: int) -> None:
        pass

    def add(self, names: Mapping[nn.Parameter, str]) -> None:
        self._parameters += names

    def reset(self) -> None:
        self._before = []

    def keep(self) -> None:
        """Copy the parameters before the step."""
        self._before = [(p, p.detach().clone()) for p in self._parameters if p.requires_grad]

    @torch.no_grad()
    def reduce(self) -> None:
        """Set each parameter to its copy plus the combined step of all ranks."""
        compression, pairs = self._reduction.compression, self._before
        sent = [compression.compress(p - before) for p, before in pairs]
        if sent:
            grouped_allreduce_([delta.contiguous() for delta, _ in sent], name=f"adasum.{self._name}", op=Adasum)
        for (p, before), (delta, context) in zip(pairs, sent, strict=True):
            p.copy_(before + compression.decompress(delta, context))
        self.reset()


class NoReducer:
    """The reducer of a world of one rank, and of a rank outside the process set: nothing to reduce."""

    under_way = False

    def set_passes(self, passes: int) -> None:
        pass

    def add(self, names: Mapping[nn.Parameter, str]) -> None:
        pass

    def reset(self) -> None:
        pass

    def reduce(self) -> None:
        pass
