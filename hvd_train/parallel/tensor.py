"""Linear layers and attention shared by the ranks of a stage (Shoeybi et al., "Megatron-LM", arXiv 1909.08053).

Of two layers with only elementwise functions between them the first is cut by its outputs, the second by its inputs: one sum
over ranks forward, one backward. A layer by itself is cut by its inputs, or by its outputs where those do not divide; attention
is cut by heads. All else is computed by every rank alike, so that activations between layers, and the gradients of whole
parameters, are equal on all ranks of the stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.comm.base import Communicator
from hvd_train.errors import UserError
from hvd_train.models.base import Link
from hvd_train.models.transformer import Attention
from hvd_train.parallel.stages import flattened

ELEMENTWISE = (
    nn.Dropout, nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
    nn.Softplus, nn.Tanh,
)  # fmt: skip

Chain = list[tuple[str, nn.Module]]


class Cut(NamedTuple):
    """A tensor's dimension `dim`, as `groups` runs one after another, each of which is dealt to the ranks in equal shares."""

    dim: int
    groups: int = 1

    def part(self, x: Tensor, rank: int, size: int) -> Tensor:
        """A copy of `rank`'s share of `x`."""
        runs: Tensor = x.unflatten(self.dim, (self.groups, -1))
        return runs.chunk(size, self.dim + 1)[rank].flatten(self.dim, self.dim + 1).clone()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The reverse of `part`, of the shares in rank order."""
        runs = [part.unflatten(self.dim, (self.groups, -1)) for part in parts]
        return torch.cat(runs, self.dim + 1).flatten(self.dim, self.dim + 1)


class Layer(NamedTuple):
    """How a linear layer is cut: by its outputs, or by its inputs.

    An `alone` one takes whole inputs and returns whole outputs; others take or return shares.
    """

    by: str
    alone: bool = False
    groups: int = 1

    def cuts(self) -> dict[str, Cut]:
        if self.by == "inputs":
            return {"weight": Cut(1)}
        return {"weight": Cut(0, self.groups), "bias": Cut(0, self.groups)}


@dataclass
class Plan:
    """By path: the linear layers to cut, attention to compute by heads, and modules whose noise is to differ between ranks."""

    layers: dict[str, Layer] = field(default_factory=dict)
    attention: list[str] = field(default_factory=list)
    noisy: list[str] = field(default_factory=list)

    def cuts(self) -> dict[str, Cut]:
        """By name, the parameters of which a rank has a share."""
        return {f"{path}.{name}": cut for path, layer in self.layers.items() for name, cut in layer.cuts().items()}


def plan(model: nn.Module, stages: Sequence[Sequence[Link]], size: int) -> Plan:
    """What `size` ranks share of a model in `stages`; UserError where something does not divide, or nothing can be shared."""
    made = Plan()
    if size == 1:
        return made
    shared = _shared(model)
    for stage in stages:
        for chain in _chains(stage):
            _plan(chain, size, shared, made)
    if not made.layers:
        raise UserError(
            f"parallel.tensor: {size}, but the model has no nn.Linear within an nn.Sequential, and no attention as that of "
            "'transformer'; set parallel.tensor to 1"
        )
    return made


def apply(plan: Plan, model: nn.Module, comm: Communicator) -> None:
    """Cut what of `model` is in `plan`, and keep the share of this rank of `comm`."""
    there = dict(model.named_modules())
    for path in plan.noisy:
        if path in there:
            _noise_apart(there[path], comm.rank)
    for path in plan.attention:
        if path in there:
            there[path].heads //= comm.size  # type: ignore[operator]
    for path, layer in plan.layers.items():
        if path in there:
            parent, _, name = path.rpartition(".")
            setattr(there[parent], name, Share(there[path], layer, comm))


class Share(nn.Module):
    """One rank's share of a linear layer; weight and bias have the names they had there."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: Any, layer: Layer, comm: Communicator) -> None:
        super().__init__()
        self._layer, self._comm = layer, comm
        cuts = layer.cuts()
        for name, p in linear.named_parameters():
            value = cuts[name].part(p.data, comm.rank, comm.size) if name in cuts else p.data
            self.register_parameter(name, nn.Parameter(value, requires_grad=p.requires_grad))
        if linear.bias is None:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self._by_outputs(x) if self._layer.by == "outputs" else self._by_inputs(x)

    def _by_outputs(self, x: Tensor) -> Tensor:
        mine = F.linear(enter(x, self._comm), self.weight, self.bias)
        if not self._layer.alone:
            return mine
        width = mine.shape[-1]
        before, after = self._comm.rank * width, (self._comm.size - self._comm.rank - 1) * width
        return leave(F.pad(mine, (before, after)), self._comm)

    def _by_inputs(self, x: Tensor) -> Tensor:
        if self._layer.alone:
            x = enter(x, self._comm).chunk(self._comm.size, -1)[self._comm.rank]
        whole = leave(F.linear(x, self.weight), self._comm)
        return whole if self.bias is None else whole + self.bias


class _Enter(torch.autograd.Function):
    """From what is equal on all ranks to what is each rank's own: the identity, whose gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.comm.all_reduce_(total, "sum")
        return total, None


class _Leave(torch.autograd.Function):
    """The way back: the sum over ranks, whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        comm.all_reduce_(total, "sum")
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def enter(x: Tensor, comm: Communicator) -> Tensor:
    out: Tensor = _Enter.apply(x, comm)  # type: ignore[no-untyped-call]
    return out


def leave(x: Tensor, comm: Communicator) -> Tensor:
    out: Tensor = _Leave.apply(x, comm)  # type: ignore[no-untyped-call]
    return out


def _chains(stage: Sequence[Link]) -> Iterator[Chain]:
    """The modules of a stage that run one after another, and those within each of them.

    What a link does with its modules by itself, without calling them, is left alone.
    """
    chain = [(link.paths[0], link.run if isinstance(link.run, nn.Module) else nn.Module()) for link in stage]
    # A model that is one module by itself has no place where another could be put instead.
    yield [(path, module) for path, module in chain if path]
    for path, module in chain:
        yield from _inner_chains(path, module)


def _inner_chains(path: str, module: nn.Module) -> Iterator[Chain]:
    if isinstance(module, Attention):
        return
    for name, child in module.named_children():
        chain = list(flattened(f"{path}.{name}" if path else name, child))
        if isinstance(child, nn.Sequential | Attention):
            yield chain
        for inner, part in chain:
            yield from _inner_chains(inner, part)


def _plan(chain: Chain, size: int, shared: set[nn.Parameter], made: Plan) -> None:
    rest = [*chain]
    while rest:
        path, module = rest.pop(0)
        if isinstance(module, Attention):
            _plan_attention(path, module, size, made)
        elif _is_linear(module, shared):
            between = _elementwise(rest)
            if len(between) < len(rest) and _is_linear(rest[len(between)][1], shared):
                _plan_pair(path, module, rest[: len(between) + 1], size, made)
                del rest[: len(between) + 1]
            else:
                made.layers[path] = _alone(path, module, size)


def _plan_attention(path: str, module: Attention, size: int, made: Plan) -> None:
    if module.heads % size:
        raise UserError(
            f"parallel.tensor: {size} ranks cannot share the {module.heads} heads of attention '{path}'; "
            f"expected a number of heads that is a multiple of {size}, or tensor one of {_divisors(module.heads)}"
        )
    made.attention.append(path)
    made.layers[f"{path}.project"] = Layer("outputs", groups=3)
    made.layers[f"{path}.merge"] = Layer("inputs")
    if module.dropout:
        made.noisy.append(path)


def _plan_pair(path: str, first: Any, following: Chain, size: int, made: Plan) -> None:
    width = first.out_features
    if width % size:
        raise UserError(
            f"parallel.tensor: {size} ranks cannot share the {width} neurons of layer '{path}'; "
            f"expected a width that is a multiple of {size}, or tensor one of {_divisors(width)}"
        )
    made.layers[path] = Layer("outputs")
    made.layers[following[-1][0]] = Layer("inputs")
    made.noisy += [at for at, module in following if isinstance(module, nn.Dropout) and module.p]


def _alone(path: str, linear: Any, size: int) -> Layer:
    if linear.in_features % size == 0:
        return Layer("inputs", alone=True)
    if linear.out_features % size == 0:
        return Layer("outputs", alone=True)
    raise UserError(
        f"parallel.tensor: {size} ranks cannot share layer '{path}', {linear.in_features} values to {linear.out_features}; "
        f"expected one of them to be a multiple of {size}"
    )


def _is_linear(module: nn.Module, shared: set[nn.Parameter]) -> bool:
    return type(module) is nn.Linear and not shared.intersection(module.parameters())


def _elementwise(chain: Chain) -> Chain:
    """Those at the beginning that treat each element on its own."""
    count = next((i for i, (_, module) in enumerate(chain) if not isinstance(module, ELEMENTWISE)), len(chain))
    return chain[:count]


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that have several names."""
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    return {p for p in every if sum(p is q for q in every) > 1}


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _noise_apart(module: nn.Module, rank: int) -> None:
    """Let `module`, which has a share of what is dropped out, draw other noise than the shares of other ranks.

    Generators of the ranks of a stage are in step, since what is whole must drop out alike. So each takes a seed from there,
    adds its rank, and goes back: nothing has to be kept in checkpoints.
    """
    forks: list[Any] = []

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seed = int(torch.randint(1 << 62, ()))
            forks.append(torch.random.fork_rng(_gpus(inputs)))
            forks[-1].__enter__()
            torch.manual_seed(seed + rank)

    def end(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if forks:
            forks.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _gpus(inputs: Iterable[Tensor]) -> list[torch.device]:
    return [x.device for x in inputs if x.is_cuda]
