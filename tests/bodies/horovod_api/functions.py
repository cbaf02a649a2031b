"""Broadcasts of parameters, optimizer states and objects, allgather_object, and Compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.bodies.horovod_api.base import Hvd, all_same, bodies, gather, ours_only, same


def parameters_of_a_state_dict(hvd: Hvd) -> None:
    model = _model(hvd.rank())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    all_same([*model.state_dict().values()], [*_model(0).state_dict().values()])


def parameters_with_names(hvd: Hvd) -> None:
    root = hvd.size() - 1
    model = _model(hvd.rank())
    with torch.no_grad():
        hvd.broadcast_parameters(list(model.named_parameters()), root_rank=root)
    all_same([*model.parameters()], [*_model(root).parameters()])


def parameters_without_names(hvd: Hvd) -> None:
    tensors = [torch.full((n,), float(hvd.rank())) for n in (1, 2, 3)]
    hvd.broadcast_parameters(tensors, root_rank=hvd.size() - 1)
    all_same(tensors, [torch.full((n,), hvd.size() - 1.0) for n in (1, 2, 3)])


def what_is_no_parameters_is_refused(hvd: Hvd) -> None:
    for wrong in (5, torch.ones(2), "weights"):
        with pytest.raises(ValueError, match="params"):
            hvd.broadcast_parameters(wrong, root_rank=0)


@ours_only("Horovod knows no such dtype, and sends views as if they were contiguous")
def parameters_of_every_dtype_and_layout(hvd: Hvd) -> None:
    dtypes = [torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn, torch.bfloat16, torch.bool]
    for dtype in dtypes:
        for shape in ((), (3,), (0, 2)):
            x = torch.full(shape, hvd.rank() + 1).to(dtype)
            hvd.broadcast_parameters({"x": x}, root_rank=hvd.size() - 1)
            same(x.to(torch.complex64), torch.full(shape, hvd.size()).to(dtype).to(torch.complex64), dtype)
    whole = torch.full((2, 4), float(hvd.rank()))
    hvd.broadcast_parameters([("columns", whole[:, ::2]), ("turned", whole.t()[1::2])], root_rank=0)
    same(whole, torch.zeros(2, 4))


@ours_only("Horovod raises AttributeError")
def what_is_no_tensor_among_parameters_is_refused_by_name(hvd: Hvd) -> None:
    for wrong, what in (
        (None, "NoneType"),
        ({"n": 1}, "dict"),
        (torch.ones(2).to_sparse(), "a sparse"),
    ):
        with pytest.raises(ValueError, match=f"'extra': expected a dense tensor, got {what}.*broadcast_object"):
            hvd.broadcast_parameters({"a": torch.ones(2), "extra": wrong}, root_rank=0)


def state_of_optimizers_that_have_stepped(hvd: Hvd) -> None:
    for name, options in _OPTIMIZERS:
        optimizer = _stepped(hvd.rank(), name, options)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        expected = _stepped(0, name, options).state_dict()
        _equal(optimizer.state_dict(), expected, name)


def state_of_optimizers_that_only_the_root_has_stepped(hvd: Hvd) -> None:
    """As after a checkpoint was loaded on rank 0."""
    for name, options in _OPTIMIZERS:
        optimizer = _stepped(0, name, options) if hvd.rank() == 0 else _optimizer(hvd.rank(), name, options)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        _equal(optimizer.state_dict(), _stepped(0, name, options).state_dict(), name)


@ours_only("Horovod makes the missing state by a step, which decays the weights")
def parameters_stay_where_state_is_missing(hvd: Hvd) -> None:
    for name, options in _OPTIMIZERS:
        optimizer = _stepped(0, name, options) if hvd.rank() == 0 else _optimizer(hvd.rank(), name, options)
        parameters = optimizer.param_groups[0]["params"]
        before = [p.detach().clone() for p in parameters]
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        all_same([p.detach() for p in parameters], before, name)


def trained_parameters_have_gradients_once_the_state_is_there(hvd: Hvd) -> None:
    """Gradients are zeros if there were none. Frozen parameters have none."""
    for named in (False, True):
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
        if named:
            optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        assert model.weight.grad is not None
        same(model.weight.grad, torch.zeros(2, 3))
        assert model.bias.grad is None


def gradients_of_a_sparse_embedding_stay_sparse(hvd: Hvd) -> None:
    for kind, model_of in ((torch.optim.SGD, lambda m: m), (torch.optim.SparseAdam, lambda m: None)):
        table = nn.Embedding(3, 2, sparse=True)
        optimizer = kind(table.parameters(), lr=0.5)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0, model=model_of(table))
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse
        table(torch.tensor([1])).sum().backward()
        optimizer.step()


def an_optimizer_without_state_is_no_trouble(hvd: Hvd) -> None:
    optimizer = _optimizer(0, "SGD", {})
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.01


def options_of_the_root_are_taken_over(hvd: Hvd) -> None:
    root = hvd.size() - 1
    optimizer = torch.optim.SGD(_model(0).parameters(), lr=0.1 * (hvd.rank() + 1), momentum=0.9 - 0.1 * hvd.rank())
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert optimizer.param_groups[0]["lr"] == 0.1 * (root + 1)
    assert optimizer.param_groups[0]["momentum"] == 0.9 - 0.1 * root


def state_of_a_distributed_optimizer(hvd: Hvd) -> None:
    """All ranks call it without any gradient, and no reduction hangs."""
    model = _model(hvd.rank())
    inner = torch.optim.SGD(model.parameters(), lr=0.5 + hvd.rank(), momentum=0.5)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    all_same([*model.parameters()], [*_model(0).parameters()])


def the_state_of_lbfgs_is_refused(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match="LBFGS"):
        hvd.broadcast_optimizer_state(torch.optim.LBFGS(_model(0).parameters()), root_rank=0)


def objects_from_every_root(hvd: Hvd) -> None:
    for root in range(hvd.size()):
        mine = {"rank": hvd.rank(), "list": [1, (2.5, None)], "text": "ü" * hvd.rank()}
        found = hvd.broadcast_object(mine, root_rank=root)
        assert found == {"rank": root, "list": [1, (2.5, None)], "text": "ü" * root}
    assert hvd.broadcast_object("first" if hvd.rank() == 0 else None, name="named") == "first"


def objects_with_tensors(hvd: Hvd) -> None:
    found = hvd.broadcast_object({"w": torch.full((3,), float(hvd.rank()))}, root_rank=0, name="w")
    same(found["w"], torch.zeros(3))
    state = hvd.broadcast_object(_stepped(hvd.rank(), "Adam", {}).state_dict(), root_rank=0, name="state")
    _equal(state, _stepped(0, "Adam", {}).state_dict(), "Adam")


def objects_among_a_set(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    both = [hvd.add_process_set(range(parity, hvd.size(), 2)) for parity in (0, 1)]
    mine = both[hvd.rank() % 2]
    assert hvd.broadcast_object(hvd.rank(), mine.ranks[-1], name="o", process_set=mine) == mine.ranks[-1]


def objects_of_all(hvd: Hvd) -> None:
    assert hvd.allgather_object({"rank": hvd.rank(), "long": "x" * hvd.rank()}) == [
        {"rank": r, "long": "x" * r} for r in range(hvd.size())
    ]
    assert hvd.allgather_object(None, name="none") == [None] * hvd.size()


@ours_only("Horovod names the operation after the type, and waits for ever")
def objects_of_types_that_differ(hvd: Hvd) -> None:
    rank, root = hvd.rank(), hvd.size() - 1
    assert hvd.broadcast_object({"lr": 1} if rank == 0 else None) == {"lr": 1}
    assert hvd.broadcast_object("last" if rank == root else rank, root_rank=root) == "last"
    assert hvd.allgather_object([1] if rank == 0 else None) == [[1], *[None] * root]


def compression_rounds_and_keeps_the_dtype(hvd: Hvd) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([1 + 2.0**-12, 2.0], dtype=dtype)
        small, context = hvd.Compression.fp16.compress(x)
        assert small.dtype == torch.float16
        same(hvd.Compression.fp16.decompress(small, context), torch.tensor([1.0, 2.0], dtype=dtype))
    integers = torch.tensor([3])
    small, context = hvd.Compression.fp16.compress(integers)
    same(small, integers)
    same(hvd.Compression.fp16.decompress(small, context), integers)
    x, context = hvd.Compression.none.compress(integers)
    assert hvd.Compression.none.decompress(x, context) is integers


_OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.5, "weight_decay": 0.25}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("Adagrad", {}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
]


def _model(rank: int) -> nn.Module:
    torch.manual_seed(rank)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _optimizer(rank: int, name: str, options: dict[str, Any]) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = getattr(torch.optim, name)(_model(0).parameters(), lr=0.01 * (rank + 1), **options)
    return found


def _stepped(rank: int, name: str, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Return an optimizer after three steps on the rank's own gradients."""
    optimizer = _optimizer(rank, name, options)
    for _ in range(3):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, rank + 1.0)
        optimizer.step()
    return optimizer


def _equal(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    assert found["state"].keys() == expected["state"].keys(), f"{what} {found} {expected}"
    for key, values in expected["state"].items():
        assert found["state"][key].keys() == values.keys(), what
        for name, value in values.items():
            mine = found["state"][key][name]
            assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, f"{what} {name}"
    assert gather([g["lr"] for g in found["param_groups"]])[0] == [g["lr"] for g in expected["param_groups"]], what
    assert found["param_groups"] == expected["param_groups"], what


BODIES = bodies(globals())
