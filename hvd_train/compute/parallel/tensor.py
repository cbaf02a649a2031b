"""Splits linear layers and attention among the ranks of a stage.

The method is that of Megatron-LM (Shoeybi et al., arXiv 1909.08053).
Two linear layers with only elementwise functions between them form a pair. The first is split by
its outputs and the second by its inputs, which takes one sum over ranks forward and one backward. A
single layer is split by its inputs, or by its outputs if the number of inputs does not divide.
Attention is split by heads. Every rank computes everything else, so that activations between
layers, and the gradients of whole parameters, are equal on all ranks of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.parallel.stages import flattened
from hvd_train.data.seeding import TORCH_GENERATOR
from hvd_train.errors import UserError
from hvd_train.models.base import Layer, Pair
from hvd_train.models.zoo.transformer import Attention

ELEMENTWISE = (
    nn.Dropout, nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
    nn.Softplus, nn.Tanh,
)  # fmt: skip

Chain = list[tuple[str, nn.Module]]
"""Modules that run one after another, with their paths."""


class Cut(NamedTuple):
    """Cuts dimension `dim` of a tensor.

    The dimension consists of `groups` blocks, and each block is divided equally among ranks.
    """

    dim: int
    groups: int = 1

    def part(self, x: Tensor, rank: int, size: int) -> Tensor:
        """Return a copy of the part of `x` that rank `rank` of `size` has."""
        blocks: Tensor = x.unflatten(self.dim, (self.groups, -1))
        return blocks.chunk(size, self.dim + 1)[rank].flatten(self.dim, self.dim + 1).clone()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the tensor whose parts, in rank order, are `parts`."""
        blocks = [part.unflatten(self.dim, (self.groups, -1)) for part in parts]
        return torch.cat(blocks, self.dim + 1).flatten(self.dim, self.dim + 1)


class LinearSplit(NamedTuple):
    """How a linear layer is split: by its outputs, or by its inputs."""

    by: Literal["outputs", "inputs"]
    single: bool = False
    """True if the layer takes whole inputs and returns whole outputs.

    A layer of a pair takes or returns parts.
    """
    groups: int = 1
    """Blocks of outputs, each of which is divided among ranks."""
    transposed: bool = False
    """True if the weight is (inputs, outputs)."""

    def cuts(self) -> dict[str, Cut]:
        if self.by == "inputs":
            return {"weight": Cut(int(not self.transposed))}
        return {"weight": Cut(int(self.transposed), self.groups), "bias": Cut(0, self.groups)}


@dataclass
class Plan:
    """What the ranks of a stage share, by path."""

    linear: dict[str, LinearSplit] = field(default_factory=dict)
    """Linear layers to split."""
    counts: list[tuple[str, str]] = field(default_factory=list)
    """Modules and attributes that count what a rank has a part of, such as heads."""
    noisy: list[str] = field(default_factory=list)
    """Modules with dropout on parts: their noise must differ between ranks."""

    def cuts(self) -> dict[str, Cut]:
        """Return the cuts of the parameters of which a rank has a part, by name."""
        return {f"{path}.{name}": cut for path, split in self.linear.items() for name, cut in split.cuts().items()}


def plan(model: nn.Module, stages: Sequence[Sequence[Layer]], size: int) -> Plan:
    """Plan how `size` ranks share a model in `stages`.

    Raise UserError if a layer does not divide, or if nothing can be shared.
    """
    made = Plan()
    if size == 1:
        return made
    own: Callable[[], Iterable[Pair]] | None = getattr(model, "tensor_pairs", None)
    if own:
        for pair in own():
            _plan_own(model, pair, size, made)
    else:
        tied = _tied(model)
        for chain in (chain for stage in stages for chain in _chains(stage)):
            _plan(chain, size, tied, made)
    if not made.linear:
        raise UserError(
            f"parallel.tensor: {size}, but the model, a {getattr(model, 'kind', type(model).__name__)}, has no nn.Linear within "
            "an nn.Sequential, no attention as that of 'transformer', and no tensor_pairs(); set parallel.tensor to 1"
        )
    return made


def apply(plan: Plan, model: nn.Module, comm: Communicator) -> None:
    """Split the modules of `model` that `plan` names, and keep the parts of this rank of `comm`."""
    modules = dict(model.named_modules())
    for path in plan.noisy:
        if path in modules:
            _draw_own_noise(modules[path], comm.rank)
    for path, attribute in plan.counts:
        if path in modules:
            setattr(modules[path], attribute, getattr(modules[path], attribute) // comm.size)
    for path, split in plan.linear.items():
        if path in modules:
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, SplitLinear(modules[path], split, comm))


class SplitLinear(nn.Module):
    """One rank's part of a linear layer. Its weight and bias keep their names."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: Any, split: LinearSplit, comm: Communicator) -> None:
        super().__init__()
        self._split, self._comm = split, comm
        self._oriented = torch.t if split.transposed else _same
        cuts = split.cuts()
        for name, p in linear.named_parameters():
            value = cuts[name].part(p.data, comm.rank, comm.size) if name in cuts else p.data
            self.register_parameter(name, nn.Parameter(value, requires_grad=p.requires_grad))
        if linear.bias is None:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self._by_outputs(x) if self._split.by == "outputs" else self._by_inputs(x)

    def _by_outputs(self, x: Tensor) -> Tensor:
        mine = F.linear(copy_to_ranks(x, self._comm), self._oriented(self.weight), self.bias)
        if not self._split.single:
            return mine
        width = mine.shape[-1]
        before, after = self._comm.rank * width, (self._comm.size - self._comm.rank - 1) * width
        return sum_over_ranks(F.pad(mine, (before, after)), self._comm)

    def _by_inputs(self, x: Tensor) -> Tensor:
        if self._split.single:
            x = copy_to_ranks(x, self._comm).chunk(self._comm.size, -1)[self._comm.rank]
        whole = sum_over_ranks(F.linear(x, self._oriented(self.weight)), self._comm)
        return whole if self.bias is None else whole + self.bias


def _same(x: Tensor) -> Tensor:
    return x


class _CopyToRanks(torch.autograd.Function):
    """The identity, whose gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.comm.all_reduce_(total, "sum")
        return total, None


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        comm.all_reduce_(total, "sum")
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def copy_to_ranks(x: Tensor, comm: Communicator) -> Tensor:
    """Return `x`, equal on all ranks, for computations that differ by rank (f in the paper)."""
    out: Tensor = _CopyToRanks.apply(x, comm)  # type: ignore[no-untyped-call]
    return out


def sum_over_ranks(x: Tensor, comm: Communicator) -> Tensor:
    """Return the sum of `x` over ranks, for computations equal on all ranks (g in the paper)."""
    out: Tensor = _SumOverRanks.apply(x, comm)  # type: ignore[no-untyped-call]
    return out


def _chains(stage: Sequence[Layer]) -> Iterator[Chain]:
    """Yield the chain of the modules of a stage, and the chains within each of them.

    A layer that is not a module computes with its modules without calling them, and is not split.
    """
    chain = [(layer.paths[0], layer.run if isinstance(layer.run, nn.Module) else nn.Module()) for layer in stage]
    # A model that is a single module has no parent in which the module could be replaced.
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
        for inner_path, inner in chain:
            yield from _inner_chains(inner_path, inner)


def _plan(chain: Chain, size: int, tied: set[nn.Parameter], made: Plan) -> None:
    """Add to `made` how `size` ranks share the modules of `chain`."""
    rest = [*chain]
    while rest:
        path, module = rest.pop(0)
        if isinstance(module, Attention):
            _plan_attention(path, module, size, made)
        elif _is_linear(module, tied):
            between = _elementwise(rest)
            if len(between) < len(rest) and _is_linear(rest[len(between)][1], tied):
                _plan_pair(path, module, rest[: len(between) + 1], size, made)
                del rest[: len(between) + 1]
            else:
                made.linear[path] = _single(path, module, size)


def _plan_attention(path: str, module: Attention, size: int, made: Plan) -> None:
    if module.heads % size:
        raise UserError(
            f"parallel.tensor: {size} ranks cannot share the {module.heads} heads of attention '{path}'; "
            f"expected a number of heads that is a multiple of {size}, or tensor one of {_divisors(module.heads)}"
        )
    made.counts.append((path, "heads"))
    made.linear[f"{path}.project"] = LinearSplit("outputs", groups=3)
    made.linear[f"{path}.merge"] = LinearSplit("inputs")
    if module.dropout:
        made.noisy.append(path)


def _plan_own(model: nn.Module, pair: Pair, size: int, made: Plan) -> None:
    """Add to `made` how `size` ranks share the layers of a pair that the model itself names."""
    if pair.refused is not None:
        raise UserError(
            f"parallel.tensor: ranks cannot share '{pair.first[0]}'; {pair.refused}, or parallel.tensor to 1"
        )
    if pair.units % size:
        raise UserError(
            f"parallel.tensor: {size} ranks cannot share the {pair.units} parts of '{pair.first[0]}'; expected a multiple of "
            f"{size}, or tensor one of {_divisors(pair.units)}"
        )
    for path in (*pair.first, pair.last):
        kind, expected = type(model.get_submodule(path)), "transformers' Conv1D" if pair.transposed else "nn.Linear"
        if kind is not nn.Linear and not (pair.transposed and kind.__name__ == "Conv1D"):
            raise UserError(
                f"parallel.tensor: '{path}' is a {kind.__module__}.{kind.__name__}, expected an {expected}; set parallel.tensor "
                "to 1"
            )
        made.linear[path] = LinearSplit("outputs", groups=pair.groups, transposed=pair.transposed)
    made.linear[pair.last] = LinearSplit("inputs", transposed=pair.transposed)
    made.counts += pair.counts
    made.noisy += [] if pair.noisy is None else [pair.noisy]


def _plan_pair(path: str, first: Any, following: Chain, size: int, made: Plan) -> None:
    width = first.out_features
    if width % size:
        raise UserError(
            f"parallel.tensor: {size} ranks cannot share the {width} neurons of layer '{path}'; "
            f"expected a width that is a multiple of {size}, or tensor one of {_divisors(width)}"
        )
    made.linear[path] = LinearSplit("outputs")
    made.linear[following[-1][0]] = LinearSplit("inputs")
    made.noisy += [at for at, module in following if isinstance(module, nn.Dropout) and module.p]


def _single(path: str, linear: Any, size: int) -> LinearSplit:
    if linear.in_features % size == 0:
        return LinearSplit("inputs", single=True)
    if linear.out_features % size == 0:
        return LinearSplit("outputs", single=True)
    raise UserError(
        f"parallel.tensor: {size} ranks cannot share layer '{path}', {linear.in_features} values to {linear.out_features}; "
        f"expected one of them to be a multiple of {size}"
    )


def _is_linear(module: nn.Module, tied: set[nn.Parameter]) -> bool:
    return type(module) is nn.Linear and not tied.intersection(module.parameters())


def _elementwise(chain: Chain) -> Chain:
    """Return the elementwise functions at the beginning of `chain`."""
    count = next((i for i, (_, module) in enumerate(chain) if not isinstance(module, ELEMENTWISE)), len(chain))
    return chain[:count]


def _tied(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that have several names."""
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    return {p for p in every if sum(p is q for q in every) > 1}


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _draw_own_noise(module: nn.Module, rank: int) -> None:
    """Let `module`, which works on a part of an activation, draw other noise than on other ranks.

    The generators of the ranks of a stage are equal, since dropout of whole activations must be. So
    each rank draws a seed from its generator, adds its rank for the noise, and restores the
    generator. Checkpoints need no further state.
    """
    forks: list[Any] = []

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seed = int(torch.randint(1 << 62, ()))
            forks.append(torch.random.fork_rng(_gpus(inputs)))
            with TORCH_GENERATOR:
                forks[-1].__enter__()
                torch.manual_seed(seed + rank)

    def end(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if forks:
            with TORCH_GENERATOR:
                forks.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _gpus(inputs: Iterable[Tensor]) -> list[torch.device]:
    return [x.device for x in inputs if x.is_cuda]
