"""Gradients of an optimizer's parameters, reduced over ranks: from the hook that completes them to `synchronize`.

A request is issued when the last of its gradients is complete, and known by its name: ranks may differ in order, and
in which parameters they use. The first step has a request for each parameter. After it ranks tell one another which
gradients are sparse, and from the second on the dense ones go together: on one host all of one dtype by one request,
which the waiting thread carries out itself; on several hosts by a few, which move while backward goes on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor, nn

from hvd_train.fusion import plan
from hvd_train.torch.mpi_ops import (
    Average,
    Sum,
    _all_reduce,
    allreduce_async,
    cross_size,
    sparse_allreduce_async,
    synchronize,
)
from hvd_train.torch.process_sets import ProcessSet

SEVERAL_HOSTS = 8 << 20
"""Bytes of a request where there are several hosts: the first begins early, and each is long enough for the network."""

_ORDER_BITS = 0xFFFFFF
"""Of a hash of the parameters' order: the sum of the squares over all ranks fits an int64."""

_FROZEN = 1 << 20
"""What a frozen parameter adds to the sum of ranks on which a gradient is sparse."""

TOO_MANY_PASSES = (
    "a gradient was computed more than backward_passes_per_step times before step() or synchronize(); "
    "a larger backward_passes_per_step accumulates gradients on each rank first"
)


@dataclass(frozen=True)
class Rule:
    """How gradients are combined: what DistributedOptimizer was asked for."""

    op: int
    predivide: float
    compression: Any
    sparse_as_dense: bool
    process_set: ProcessSet

    def reduce_async_(self, tensors: Sequence[Tensor], name: str, *, ring: bool) -> int:
        """Replace tensors by their reduction, by one request; without `ring`, once somebody waits for it."""
        scales = (1.0 / self.predivide, self.predivide) if self.op == Average else (1.0, 1.0)
        return _all_reduce(tensors, tensors, name, self.op, scales, self.process_set, tuple, ring=ring)


class Gradient:
    """A parameter's gradient on its way, and how many backward passes it still waits for."""

    __slots__ = (
        "_context",
        "_finish",
        "_frozen",
        "_sent",
        "_sparse_dim",
        "group",
        "name",
        "parameter",
        "passes_left",
        "sparse_elsewhere",
    )

    group: Group
    _sent: Tensor

    def __init__(self, parameter: nn.Parameter, name: str) -> None:
        self.parameter, self.name = parameter, name
        self.passes_left = 0
        self._sparse_dim = 0
        self._frozen = False
        self._finish: Callable[[], Tensor] | None = None
        self.sparse_elsewhere = False
        """Another rank's is sparse, and so are the zeros of a rank that has none."""

    @property
    def sparse(self) -> bool:
        return self.parameter.grad is not None and self.parameter.grad.is_sparse

    def prepare(self, rule: Rule, *, dense: bool) -> Tensor | None:
        """What of it a request takes along; None where it is sparse, and is on its way now. Without one, zeros."""
        p = self.parameter
        self._finish = None
        self._frozen = p.grad is None and not p.requires_grad
        if p.grad is None:
            p.grad = torch.zeros_like(p).to_sparse(1) if self.sparse_elsewhere else torch.zeros_like(p)
        self._sparse_dim = p.grad.sparse_dim() if p.grad.is_sparse else 0
        if self._sparse_dim and not dense:
            self._finish = sparse_allreduce_async(p.grad, name=self.name, op=rule.op, process_set=rule.process_set)
            return None
        if self._sparse_dim:
            p.grad = p.grad.to_dense()
        sent: Tensor
        sent, self._context = rule.compression.compress(p.grad)
        self._sent = sent.contiguous()
        return self._sent

    def finish(self, rule: Rule) -> None:
        """The reduced gradient becomes the parameter's."""
        p = self.parameter
        if self._finish is not None:
            p.grad, self._finish = self._finish(), None
            return
        result = rule.compression.decompress(self._sent, self._context)
        if result is not p.grad:
            assert p.grad is not None, "nobody takes a gradient away that is being reduced"
            p.grad.copy_(result)
        if self._sparse_dim:
            p.grad = result.to_sparse(self._sparse_dim)
        if self._frozen:
            p.grad = None
        del self._sent


class Group:
    """Gradients that one request reduces; those in a `fused` one are dense on every rank, or made so.

    One that is `alone` is the last of its step, so that nothing is gained from moving it before somebody waits.
    """

    def __init__(self, gradients: Sequence[Gradient], name: str, *, fused: bool = False, alone: bool = False) -> None:
        self.gradients, self._name, self._fused, self._alone = gradients, name, fused, alone
        self.missing = len(gradients)
        self._handle: int | None = None
        self.issued = False
        for gradient in gradients:
            gradient.group = self

    def issue(self, rule: Rule) -> None:
        dense = self._fused or rule.sparse_as_dense
        tensors = [g.prepare(rule, dense=dense) for g in self.gradients]
        sent = [t for t in tensors if t is not None]
        if sent:
            self._handle = rule.reduce_async_(sent, self._name, ring=not self._alone)
        self.issued = True

    def collect(self, rule: Rule) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            synchronize(handle)
        for gradient in self.gradients:
            gradient.finish(rule)

    def expect(self, passes: int) -> None:
        """Begin anew: every gradient is complete after so many backward passes."""
        self.missing, self.issued, self._handle = len(self.gradients), False, None
        for gradient in self.gradients:
            gradient.passes_left = passes


class Vote:
    """The sum of all ranks' `ballot`, which nobody waits for before it is read; None where hvd was shut down since."""

    _under_way: ClassVar[dict[str, Vote]] = {}
    """By name: optimizers of models that are named alike would otherwise ask twice at once."""

    def __init__(self, ballot: Tensor, name: str, process_set: ProcessSet) -> None:
        earlier = self._under_way.get(name)
        if earlier is not None:
            _ = earlier.total
        self._handle = allreduce_async(ballot, name=name, op=Sum, process_set=process_set)
        self._under_way[name] = self

    @cached_property
    def total(self) -> Tensor | None:
        votes: Tensor | None = synchronize(self._handle)
        return votes


class GradientReducer:
    """All gradients of an optimizer; `groups` are lists of parameters that go by one request each."""

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        rule: Rule,
        groups: Iterable[Sequence[nn.Parameter]] | None,
        passes: int,
    ) -> None:
        self._rule, self._passes = rule, passes
        self._frozen = dict(names)
        self._groups: list[Group] = []
        self._settled = groups is not None
        self._voters: list[Gradient] = []
        self._vote: Vote | None = None
        self.under_way = False
        """A gradient of the coming step has been computed."""
        for group in groups or ():
            self._adopt([p for p in group if p in self._frozen], together=True)
        self._adopt(self._frozen)

    def set_passes(self, passes: int) -> None:
        self._passes = passes
        self.reset()

    def add(self, names: Mapping[nn.Parameter, str]) -> None:
        """More parameters."""
        self._frozen |= names

    def reset(self) -> None:
        """Forget what is under way."""
        self.under_way = False
        for group in self._groups:
            group.expect(self._passes)

    @torch.no_grad()
    def reduce(self) -> None:
        """Issue what backward has not, wait for everything, and set the gradients."""
        self._fuse()
        self._adopt(self._frozen)
        for group in self._groups:
            if not group.issued:
                group.issue(self._rule)
        for group in self._groups:
            group.collect(self._rule)
        if not self._settled:
            self._propose()
        self.reset()

    def _adopt(self, parameters: Iterable[nn.Parameter], *, together: bool = False) -> None:
        """From now on, reduce the gradients of those parameters that are trained by now."""
        trained = [p for p in parameters if p.requires_grad]
        gradients = [Gradient(p, self._frozen.pop(p)) for p in trained]
        for gradient in gradients:
            gradient.passes_left = self._passes
            gradient.parameter.register_post_accumulate_grad_hook(partial(_complete, weakref.ref(self), gradient))
        for members in [gradients] if together and gradients else [[g] for g in gradients]:
            self._groups.append(Group(members, members[0].name))

    def complete(self, gradient: Gradient) -> None:
        """A backward pass has computed `gradient`."""
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
                    group.issue(self._rule)

    def _propose(self) -> None:
        """Tell the other ranks which gradients should not go together; nobody waits for the answer in this step."""
        self._voters = [group.gradients[0] for group in self._groups]
        names = [g.name for g in self._voters]
        order = crc32("\n".join(names).encode()) & _ORDER_BITS
        sparse = [g.sparse and not self._rule.sparse_as_dense for g in self._voters]
        apart = [s + _FROZEN * (not g.parameter.requires_grad) for s, g in zip(sparse, self._voters, strict=True)]
        name = f"{min(names)}.fuse" if names else "fuse"
        self._vote = Vote(torch.tensor([1, order, order**2, *apart]), name, self._rule.process_set)

    def _fuse(self) -> None:
        """Where every rank has told, put together what is dense on all; one that has joined tells later.

        A group is known to other ranks by position: where ranks have parameters in different orders, there are none.
        """
        if self._vote is None:
            return
        votes, self._vote = self._vote.total, None
        if votes is None:
            return
        ranks, order, square, *apart = votes.tolist()
        if ranks == self._rule.process_set.size():
            self._settled = True
            same_order = ranks * square == order**2  # Cauchy-Schwarz: equal only where all summands are
            for gradient, own in zip(self._voters, apart, strict=True):
                gradient.sparse_elsewhere = same_order and own % _FROZEN > 0
            fusible = [g for g, own in zip(self._voters, apart, strict=True) if same_order and not own]
            rest = [group for group in self._groups if group.gradients[0] not in fusible]
            self._groups = [*_fused(fusible), *rest]
            self.reset()


def _complete(reducer: weakref.ref[GradientReducer], gradient: Gradient, _: Tensor) -> None:
    """The hook of a parameter, which may outlive the optimizer."""
    alive = reducer()
    if alive is not None:
        alive.complete(gradient)


def _fused(gradients: Sequence[Gradient]) -> list[Group]:
    parameters = [g.parameter for g in gradients]
    sizes = [p.numel() * p.element_size() for p in parameters]
    alone = cross_size() == 1
    limit = sum(sizes) if alone else SEVERAL_HOSTS
    dealt = plan(sizes, [(p.dtype, p.device) for p in parameters], limit)
    members = [[gradients[i] for i in group] for group in dealt]
    names = [f"{m[0].name}...{m[-1].name}" if len(m) > 1 else m[0].name for m in members]
    return [Group(m, name, fused=True, alone=alone) for m, name in zip(members, names, strict=True)]
