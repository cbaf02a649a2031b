"""The training side of hvd_train.torch beyond Horovod's behaviour, on every rank of an `mpirun`.

`tests/single/test_torch_training.py` runs this file. Losses are float64, and the oracle is one
process that sums over all ranks: N ranks equal one process.
"""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn import functional

import hvd_train.torch as hvd
from hvd_train.torch import reducer
from hvd_train.torch.exceptions import HostsUpdatedInterrupt

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
Loss = Callable[[nn.Module, int, int], Tensor]
"""The loss of a model on a rank in a step."""


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    hvd.init(process_sets="dynamic")
    yield
    WORLD.Barrier()
    hvd.shutdown()


class Branches(nn.Module):
    """Two branches. A loss uses any of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double() for _ in range(2))


def batch(rank: int, step: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(*(shape or (3, 4)), dtype=torch.float64, generator=generator)


def both(model: Any, rank: int, step: int) -> Tensor:
    x = batch(rank, step)
    return model.left(x).square().mean() + (model.right(x) - 1).square().mean()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def mean_loss(model: nn.Module, step: int, loss: Loss) -> Tensor:
    return torch.stack([loss(model, r, step) for r in range(SIZE)]).mean()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step once on the gradient of `loss` alone."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def zero_where_unused(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is None and p.requires_grad:
            p.grad = torch.zeros_like(p)


def close(found: nn.Module, expected: nn.Module) -> None:
    """Assert equality up to rounding, and exact equality among ranks."""
    for (name, p), q in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        assert len(set(WORLD.allgather(p.numpy().tobytes()))) == 1, f"{name} differs between ranks"


def distributed(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Any:
    return hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)


def compare(
    loss: Loss, build: Callable[[nn.Module], torch.optim.Optimizer] = sgd, steps: int = 4, **options: Any
) -> Any:
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, build(model), **options), build(reference)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss(model, RANK, step).backward()
        optimizer.step()
        plain.zero_grad()
        mean_loss(reference, step, loss).backward()
        zero_where_unused(reference)
        plain.step()
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    close(model, reference)
    return optimizer


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "NAdam", "Adafactor"])
def test_n_ranks_equal_one_process(name: str) -> None:
    compare(both, lambda model: getattr(torch.optim, name)(model.parameters(), lr=0.05))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"sparse_as_dense": True}, {"gradient_predivide_factor": 4.0}])
def test_gradients_stay_where_autograd_put_them(options: dict[str, Any]) -> None:
    """A reference to the gradient of an earlier step still has its values."""
    model = Branches()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.0), **options)
    kept = []
    for step in range(4):
        optimizer.zero_grad()
        both(model, RANK, step).backward()
        before = [p.grad for p in model.parameters()]
        optimizer.step()
        assert all(p.grad is b for p, b in zip(model.parameters(), before, strict=True))
        kept.append(before[0])
    for step, gradient in enumerate(kept):
        expected = Branches()
        mean_loss(expected, step, both).backward()
        torch.testing.assert_close(gradient, expected.left[0].weight.grad)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_differ_in_what_they_use_and_when(seed: int) -> None:
    """A parameter that only other ranks use, or no rank, counts as one with gradient zero."""

    def loss(model: Any, rank: int, step: int) -> Tensor:
        chosen = torch.Generator().manual_seed(seed * 100 + step * SIZE + rank)
        x = batch(rank, step)
        parts = [model.left(x).square().mean(), model.right(x).square().mean()]
        uses = int(torch.randint(0, 4, (), generator=chosen))
        return sum((part for i, part in enumerate(parts) if uses >> i & 1), x.sum().mul(0).requires_grad_())

    compare(loss, steps=6)


def test_fused_after_the_first_step() -> None:
    optimizer = compare(both)
    assert len(optimizer._reducer._groups) == (1 if SIZE > 1 else 8)


def test_frozen_parameters_stay_and_unfrozen_ones_join() -> None:
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    for step in range(8):
        for m in (model, reference):
            m.left.requires_grad_(step < 2 or step >= 5)
        descend(optimizer, both(model, RANK, step))
        descend(plain, mean_loss(reference, step, both))
    close(model, reference)


def test_frozen_before_wrapping_and_trained_later() -> None:
    model, reference = Branches(), Branches()
    model.left.requires_grad_(False)
    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    for step in range(6):
        for m in (model, reference):
            m.left.requires_grad_(step >= 3)
        descend(optimizer, both(model, RANK, step))
        descend(plain, mean_loss(reference, step, both))
    close(model, reference)


def test_parameters_added_later_are_reduced() -> None:
    model, reference = Branches(), Branches()
    optimizer = distributed(model.left, torch.optim.SGD(model.left.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.left.parameters(), lr=0.1)
    for step in range(5):
        if step == 3:
            optimizer.add_param_group({"params": list(model.right.parameters()), "lr": 0.2})
            plain.add_param_group({"params": list(reference.right.parameters()), "lr": 0.2})
        model.zero_grad()
        both(model, RANK, step).backward()
        optimizer.step()
        reference.zero_grad()
        mean_loss(reference, step, both).backward()
        plain.step()
    close(model, reference)


@pytest.mark.parametrize("passes", [2, 3])
def test_passes_add_up_and_the_last_step_may_have_fewer(passes: int) -> None:
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, sgd(model), backward_passes_per_step=passes), sgd(reference)
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad()
        for number in range(1 if step == 3 else passes):
            both(model, RANK, 10 * step + number).backward()
            mean_loss(reference, 10 * step + number, both).backward()
        optimizer.step()
        plain.step()
    close(model, reference)


@pytest.mark.parametrize("as_dense", [False, True])
@pytest.mark.parametrize("first", [SIZE, 1, 0], ids=["all", "one", "none"])
def test_sparse_gradients(as_dense: bool, first: int) -> None:
    """In the first step `first` ranks use the embedding; later all ranks do.

    Ranks agree on the sparse gradients after the first step.
    """
    as_dense = as_dense or first == 1
    torch.manual_seed(0)
    models = [nn.ModuleDict({"e": nn.Embedding(6, 3, sparse=s), "l": nn.Linear(3, 1)}).double() for s in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    model, reference = models
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1), sparse_as_dense=as_dense)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)

    def loss(m: Any, rank: int, step: int) -> Tensor:
        if step == 0 and rank >= first:
            return m["l"](torch.ones(1, 3, dtype=torch.float64)).sum()
        return m["l"](m["e"](torch.tensor([rank, step, rank]))).square().sum()

    for step in range(4):
        descend(optimizer, loss(model, RANK, step))
        assert model["e"].weight.grad.is_sparse or (first < SIZE and step == 0)
        descend(plain, mean_loss(reference, step, loss))
    close(model, reference)
    apart = [[g.name for g in group.gradients] for group in optimizer._reducer._groups]
    assert (["e.weight"] in apart) is (first == SIZE and not as_dense)


def test_gradients_in_other_memory_orders() -> None:
    torch.manual_seed(0)
    models = [nn.Conv2d(2, 3, 3).double().to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    model, reference = models

    def loss(m: nn.Module, rank: int, step: int) -> Tensor:
        return m(batch(rank, step, 2, 2, 5, 5).to(memory_format=torch.channels_last)).square().mean()

    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    for step in range(3):
        descend(optimizer, loss(model, RANK, step))
        descend(plain, mean_loss(reference, step, loss))
    close(model, reference)


def test_closure() -> None:
    """The step uses the gradients that the closure computes."""
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    for step in range(4):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = both(model, RANK, step)
            loss.backward()
            return loss

        def whole(step: int = step) -> Tensor:
            plain.zero_grad()
            loss = mean_loss(reference, step, both)
            loss.backward()
            return loss

        assert optimizer.step(closure) is not None
        plain.step(whole)
    close(model, reference)


def test_closure_after_backward() -> None:
    """The closure only returns the loss, so the gradients are reduced once."""
    model, reference = Branches(), Branches()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1), op=hvd.Sum)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss = both(model, RANK, step)
        loss.backward()
        assert optimizer.step(lambda loss=loss: loss) is loss
        descend(plain, mean_loss(reference, step, both) * SIZE)
    close(model, reference)


def test_a_closure_evaluated_several_times() -> None:
    """LBFGS on a loss that differs between ranks only in its data."""
    torch.manual_seed(0)
    weights = [nn.Linear(4, 1).double() for _ in range(2)]
    weights[1].load_state_dict(weights[0].state_dict())
    model, reference = weights

    def loss(m: nn.Module, rank: int, step: int) -> Tensor:
        return (m(batch(rank, 0)) - 1).square().mean()

    optimizer = distributed(model, torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, tolerance_change=0))
    plain = torch.optim.LBFGS(reference.parameters(), lr=0.5, max_iter=5, tolerance_change=0)

    def closure(opt: Any, evaluate: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            opt.zero_grad()
            value = evaluate()
            value.backward()
            return value

        return run

    for _ in range(3):
        optimizer.step(closure(optimizer, lambda: loss(model, RANK, 0)))
        plain.step(closure(plain, lambda: mean_loss(reference, 0, loss)))
    close(model, reference)


def test_clipped_between_synchronize_and_step() -> None:
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    for step in range(4):
        optimizer.zero_grad()
        both(model, RANK, step).backward()
        optimizer.synchronize()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with optimizer.skip_synchronize(), warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        plain.zero_grad()
        mean_loss(reference, step, both).backward()
        assert norm > 0.1
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(reference.parameters(), 0.1))
        plain.step()
    close(model, reference)


def test_an_overflow_on_one_rank_skips_the_step_of_all() -> None:
    model, reference = Branches(), Branches()
    optimizer, plain = distributed(model, sgd(model)), sgd(reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for step in range(5):
        optimizer.zero_grad()
        overflow = float("inf") if step == 2 and RANK == SIZE - 1 else 1.0
        (scaler.scale(both(model, RANK, step)) * overflow).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        if step != 2:
            descend(plain, mean_loss(reference, step, both))
    assert WORLD.allgather(scaler.get_scale()) == [512.0] * SIZE
    close(model, reference)


def test_two_optimizers_that_ranks_step_in_opposite_orders() -> None:
    model, reference = Branches(), Branches()
    parts = [model.left, model.right]
    optimizers = [
        hvd.DistributedOptimizer(
            torch.optim.SGD(part.parameters(), lr=0.1), [(f"{i}.{n}", p) for n, p in part.named_parameters()]
        )
        for i, part in enumerate(parts)
    ]
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(4):
        model.zero_grad()
        both(model, RANK, step).backward()
        for optimizer in optimizers if RANK % 2 else reversed(optimizers):
            optimizer.step()
        descend(plain, mean_loss(reference, step, both))
    close(model, reference)


def test_two_models_whose_parameters_are_named_alike() -> None:
    """As in an ensemble, each model is stepped before the gradients of the other are computed."""
    pairs = [(Branches(), Branches()) for _ in range(2)]
    optimizers = [(distributed(model, sgd(model)), sgd(reference)) for model, reference in pairs]
    for step in range(4):
        for number, ((model, reference), (optimizer, plain)) in enumerate(zip(pairs, optimizers, strict=True)):
            descend(optimizer, both(model, RANK, 2 * step + number))
            descend(plain, mean_loss(reference, 2 * step + number, both))
    for model, reference in pairs:
        close(model, reference)


def test_a_model_wrapped_again_forgets_its_first_optimizer() -> None:
    model, reference = Branches(), Branches()
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for first in (0, 3):
        optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(first, first + 3):
            descend(optimizer, both(model, RANK, step))
            descend(plain, mean_loss(reference, step, both))
        del optimizer
        gc.collect()
    close(model, reference)


def test_state_and_schedule_are_the_wrapped_ones() -> None:
    model, reference = Branches(), Branches()
    inner, plain = sgd(model), sgd(reference)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (inner, plain)]
    optimizer = distributed(model, inner)
    steps: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    for step in range(4):
        descend(optimizer, both(model, RANK, step))
        descend(plain, mean_loss(reference, step, both))
        for schedule in schedules:
            schedule.step()
    close(model, reference)
    assert len(steps) == 4
    found, expected = optimizer.state_dict(), plain.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for i, values in expected["state"].items():
        torch.testing.assert_close(found["state"][i], values, rtol=1e-10, atol=1e-12)
    other = Branches()
    again = distributed(other, sgd(other))
    again.load_state_dict(found)
    torch.testing.assert_close(again.state_dict()["state"], found["state"])
    again.register_step_post_hook(lambda *_: steps.append(2))
    again.step()
    assert steps[4:] == [2]


def test_a_loaded_state_forgets_what_was_under_way() -> None:
    model = Branches()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1))
    both(model, RANK, 0).backward()
    if SIZE > 1:
        with pytest.raises(AssertionError, match="zero_grad"):
            optimizer.zero_grad()
    optimizer.synchronize()
    both(model, RANK, 0).backward()
    for group in optimizer._reducer._groups:
        group.collect(optimizer._reducer._reduction) if group.issued else None
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_ranks_that_have_no_more_data_join(steps: int) -> None:
    """Rank r takes `steps` + r steps. Ranks that have joined add zeros.

    Then all ranks continue together.
    """
    model, reference = Branches(), Branches()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    counts = [steps + r for r in range(SIZE)]

    def expect(step: int, ranks: list[int]) -> None:
        descend(plain, sum((both(reference, r, step) for r in ranks), torch.zeros(())) / SIZE)

    for step in range(max(counts)):
        if step < counts[RANK]:
            descend(optimizer, both(model, RANK, step))
        expect(step, [r for r in range(SIZE) if step < counts[r]])
    hvd.join()
    hvd.broadcast_parameters(model.state_dict(), root_rank=SIZE - 1)
    for step in range(100, 103):
        descend(optimizer, both(model, RANK, step))
        expect(step, list(range(SIZE)))
    close(model, reference)


def test_a_process_set_of_its_own() -> None:
    ranks = list(range(1, SIZE)) or [0]
    chosen = hvd.add_process_set(ranks)
    model, reference = Branches(), Branches()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1), process_set=chosen)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(4):
        descend(optimizer, both(model, RANK, step))
        plain.zero_grad()
        losses = [both(reference, r, step) for r in (ranks if RANK in ranks else [RANK])]
        torch.stack(losses).mean().backward()
        plain.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


class Rounded:
    """A custom compressor with state: it sends multiples of 1/8 and keeps the rest."""

    def __init__(self) -> None:
        self.sent = 0

    def compress(self, tensor: Tensor) -> tuple[Tensor, tuple[torch.Size, torch.dtype]]:
        self.sent += 1
        return (tensor.flatten() * 8).round().float(), (tensor.shape, tensor.dtype)

    def decompress(self, tensor: Tensor, ctx: tuple[torch.Size, torch.dtype]) -> Tensor:
        return (tensor / 8).to(ctx[1]).view(ctx[0])


def test_a_compressor_of_the_scripts_own() -> None:
    model = Branches()
    compressor = Rounded()
    optimizer = distributed(model, torch.optim.SGD(model.parameters(), lr=0.1), compression=compressor, op=hvd.Sum)
    for step in range(3):
        optimizer.zero_grad()
        both(model, RANK, step).backward()
        mine = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for p, rounded in zip(model.parameters(), zip(*WORLD.allgather(mine), strict=True), strict=True):
            expected = sum(((g * 8).round() / 8 for g in rounded), torch.zeros(()))
            torch.testing.assert_close(p.grad, expected.double())
    assert compressor.sent == 3 * 8


def test_adasum_of_a_models_steps() -> None:
    """Orthogonal steps add up, equal steps are averaged. Ranks stay equal, and momentum is kept."""
    p, q = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
    inner = torch.optim.SGD([p, q], lr=0.5, momentum=0.5)
    optimizer: Any = hvd.DistributedOptimizer(inner, [("p", p), ("q", q)], op=hvd.Adasum)
    plain_q = torch.zeros(2, dtype=torch.float64)
    velocity = 0.0
    for _ in range(3):
        descend(optimizer, p[RANK] + 2 * q.sum())
        velocity = 0.5 * velocity + 1
        plain_q -= 0.5 * 2 * velocity
    torch.testing.assert_close(q.data, plain_q)
    assert len(set(WORLD.allgather(p.data.numpy().tobytes()))) == 1
    assert len(set(p.tolist())) == 1
    torch.testing.assert_close(p.data[0], plain_q[0] / 2)


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 3, 4), (6, 2, 3, 2)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_sync_batch_norm_equals_the_whole_batch(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Ranks have 3, 4, ... rows; the last of more than two ranks has none.

    Values are far from zero, so that their squares would cancel.
    """
    channels = 3
    counts = [3 + r if r < 2 or r < SIZE - 1 else 0 for r in range(SIZE)]
    layer = hvd.SyncBatchNorm(channels, **options).double()
    reference = nn.BatchNorm1d(channels, **options).double()
    if options.get("affine", True):
        with torch.no_grad():
            for bn in (layer, reference):
                bn.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
                bn.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    trailing = shape[1:]
    for step in range(3):
        parts = [batch(r, step, n, channels, *trailing) + 1e3 for r, n in enumerate(counts)]
        slopes = [batch(r, 50 + step, n, channels, *trailing) for r, n in enumerate(counts)]
        x = parts[RANK].clone().requires_grad_()
        whole = torch.cat(parts).requires_grad_()
        layer.zero_grad()
        reference.zero_grad()
        y = layer(x)
        (y * slopes[RANK]).sum().backward()
        flat = whole.reshape(whole.shape[0], channels, -1)
        expected = reference(flat).view(whole.shape)
        (expected * torch.cat(slopes)).sum().backward()
        mine = slice(sum(counts[:RANK]), sum(counts[: RANK + 1]))
        torch.testing.assert_close(y, expected[mine], rtol=1e-8, atol=1e-8)
        assert whole.grad is not None
        torch.testing.assert_close(x.grad, whole.grad[mine], rtol=1e-7, atol=1e-8)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    for p, q in zip(layer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(sum(WORLD.allgather(p.grad), torch.zeros(())).double(), q.grad, rtol=1e-7, atol=1e-8)
    layer.eval()
    reference.eval()
    x = batch(RANK, 9, 4, channels)
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-8, atol=1e-8)


def test_sync_batch_norm_refuses_what_it_cannot_normalize() -> None:
    layer = hvd.SyncBatchNorm(3)
    with pytest.raises(ValueError, match="two dimensions"):
        layer(torch.ones(3))
    with pytest.raises(ValueError, match="channels"):
        layer(torch.ones(2, 4))
    if SIZE > 1:
        with pytest.raises(ValueError, match="more than 1 value"):
            layer(torch.ones(int(RANK == 0), 3))


def test_sync_batch_norm_in_halves() -> None:
    layer = hvd.SyncBatchNorm(3)
    x = batch(RANK, 0, 64, 3).to(torch.bfloat16)
    whole = torch.cat([batch(r, 0, 64, 3).to(torch.bfloat16) for r in range(SIZE)]).float()
    y = layer(x)
    expected = functional.batch_norm(whole, None, None, training=True)[64 * RANK : 64 * RANK + 64]
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["Adam", "SGD", "ASGD", "Rprop", "Adafactor"])
def test_optimizer_state_of_the_root_and_the_next_step(name: str) -> None:
    """Only the root has stepped.

    After the broadcast all ranks step like one process that took all steps.
    """
    root = SIZE - 1

    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        descend(optimizer, both(model, root, step))

    model, reference = Branches(), Branches()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05 if root == RANK else 0.5)
    plain = getattr(torch.optim, name)(reference.parameters(), lr=0.05)
    stepped(reference, plain, 0)
    if root == RANK:
        stepped(model, optimizer, 0)
    hvd.broadcast_parameters(model.state_dict(), root_rank=root)
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    for step in range(1, 3):
        stepped(model, optimizer, step)
        stepped(reference, plain, step)
    close(model, reference)


def test_what_a_root_without_state_has_everybody_has() -> None:
    model = Branches()
    optimizer = torch.optim.Adam(model.parameters())
    if RANK:
        both(model, RANK, 0).backward()
        optimizer.step()
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert WORLD.allgather(len(optimizer.state_dict()["state"])) == [0] * SIZE


def test_parameters_that_are_not_contiguous_are_broadcast_in_place() -> None:
    whole = torch.full((3, 4), float(RANK))
    hvd.broadcast_parameters({"t": whole.t(), "column": whole[:, 1]}, root_rank=SIZE - 1)
    assert torch.equal(whole, torch.full((3, 4), SIZE - 1.0))


def test_objects_that_only_cloudpickle_knows() -> None:
    times = hvd.broadcast_object(lambda x: x * 3 if RANK == 0 else None, name="function")
    assert times(2) == 6
    assert [f(1) for f in hvd.allgather_object(lambda x, r=RANK: x + r)] == list(range(1, SIZE + 1))


def test_run_begins_again_with_other_collectives_in_between() -> None:
    """A mismatch of shapes raises a real HorovodInternalError on every rank."""
    model = Branches()
    optimizer = distributed(model, sgd(model))
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0, seen=[])
    resets: list[int] = []
    state.register_reset_callbacks([lambda: resets.append(state.step)])
    tries = itertools.count()

    @hvd.elastic.run
    def train(state: Any) -> str:
        attempt = next(tries)
        while state.step < 6:
            descend(optimizer, both(model, RANK, state.step))
            state.step += 1
            if state.step == 5 and attempt == 0 and SIZE > 1:
                hvd.allreduce(torch.ones(1 + RANK), name="mismatch")
            if state.step == 4 and attempt == 1:
                state.on_hosts_updated(1, 2)
            if state.step == 3 or attempt:
                state.commit()
        return "done"

    assert train(state) == "done"
    assert resets == ([3, 4] if SIZE > 1 else [])
    reference = Branches()
    plain = sgd(reference)
    for step in range(6):
        descend(plain, mean_loss(reference, step, both))
    close(model, reference)


def test_hosts_that_changed_interrupt_every_rank() -> None:
    state = hvd.elastic.TorchState(epoch=RANK)
    state.check_host_updates()
    for change, skip in ((1, True), (2, False), (3, False)):
        if RANK == 0:
            state.on_hosts_updated(10 + change, change)
        with pytest.raises(HostsUpdatedInterrupt) as caught:
            state.check_host_updates()
        assert caught.value.skip_sync is skip
        state.check_host_updates()
    state.on_hosts_updated(5, 2)  # older than what is known
    state.check_host_updates()


def test_buckets_where_there_are_several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reducer, "cross_size", lambda: 2)
    monkeypatch.setattr(reducer, "MULTI_HOST_BYTES", 200)
    optimizer = compare(both)
    assert 1 < len(optimizer._reducer._groups) < 8
