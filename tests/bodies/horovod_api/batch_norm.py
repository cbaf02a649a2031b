"""SyncBatchNorm on CPUs, compared with torch's batch normalization of the batch of all ranks."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from tests.bodies.horovod_api.base import Hvd, bodies, ours_only

on_processors = ours_only("Horovod's takes tensors of a GPU only")


@on_processors
def it_normalises_over_all_ranks(hvd: Hvd) -> None:
    for shape in [(3,), (3, 4), (3, 2, 5)]:
        _compare(hvd, shape, [4] * hvd.size())


@on_processors
def parts_of_the_batch_may_differ(hvd: Hvd) -> None:
    """Rank r has r + 1 samples."""
    _compare(hvd, (3, 2), [r + 1 for r in range(hvd.size())])


@on_processors
def without_scale_and_statistics(hvd: Hvd) -> None:
    _compare(hvd, (3,), [4] * hvd.size(), affine=False)
    _compare(hvd, (3,), [4] * hvd.size(), track_running_stats=False)
    _compare(hvd, (3,), [4] * hvd.size(), momentum=None)


@on_processors
def in_evaluation_it_uses_what_it_has_seen(hvd: Hvd) -> None:
    layer = hvd.SyncBatchNorm(3).double()
    layer(torch.randn(4, 3, dtype=torch.float64) + hvd.rank())
    layer.eval()
    plain = nn.BatchNorm1d(3).double().eval()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2 + hvd.rank(), 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


@on_processors
def halves_stay_halves_and_statistics_do_not(hvd: Hvd) -> None:
    """Outputs and gradients equal torch's, rounded once, also within autocast."""
    for dtype in (torch.bfloat16, torch.float16):
        for context in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
            layer, whole = hvd.SyncBatchNorm(3), nn.BatchNorm1d(3)
            parts = [(_random(4, (3,), 10 * hvd.size() + r).to(dtype)) for r in range(hvd.size())]
            mine, x = parts[hvd.rank()].clone().requires_grad_(), torch.cat(parts).float().requires_grad_()
            with context:
                found, expected = layer(mine), whole(x)
            assert found.dtype == dtype, found.dtype
            weights = _random(len(x), (3,), 5).to(dtype)
            (found * weights.split(4)[hvd.rank()]).sum().backward()
            (expected * weights.float()).sum().backward()
            assert mine.grad is not None
            assert x.grad is not None
            assert mine.grad.dtype == dtype
            _near(found, expected.split(4)[hvd.rank()], dtype)
            _near(mine.grad, x.grad.split(4)[hvd.rank()], dtype)
            _near(hvd.allreduce(layer.weight.grad, op=hvd.Sum), whole.weight.grad, torch.float32)
            for name, value in whole.state_dict().items():
                assert layer.state_dict()[name].dtype == value.dtype
                _near(layer.state_dict()[name], value, torch.float32)


@on_processors
def full_precision_stays_so_within_autocast(hvd: Hvd) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert hvd.SyncBatchNorm(3)(torch.randn(4, 3)).dtype == torch.float32


@on_processors
def a_single_sample_of_all_ranks_is_refused_by_every_rank(hvd: Hvd) -> None:
    for owner in range(hvd.size()):
        layer = hvd.SyncBatchNorm(3)
        with pytest.raises(ValueError, match=r"(?i)expected more than 1 value per channel"):
            layer(torch.ones(int(hvd.rank() == owner), 3))
    # Two values per channel suffice, on any ranks.
    found = hvd.SyncBatchNorm(3)(torch.tensor([[[0.0, 2.0]] * 3]) if hvd.rank() == 0 else torch.ones(0, 3, 2))
    assert found.shape[0] == int(hvd.rank() == 0)
    torch.testing.assert_close(found.detach(), torch.tensor([[[-1.0, 1.0]] * 3])[: len(found)], rtol=1e-4, atol=1e-4)


@on_processors
def no_samples_at_all_change_nothing(hvd: Hvd) -> None:
    layer = hvd.SyncBatchNorm(3)
    x = torch.ones(0, 3, requires_grad=True)
    layer(x).sum().backward()
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.running_var.tolist() == [1, 1, 1]


def _near(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    """Assert equality up to a few roundings to `dtype`."""
    assert found is not None
    assert expected is not None
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected.double(), rtol=20 * eps, atol=20 * eps)


def _compare(hvd: Hvd, rest: tuple[int, ...], counts: list[int], **options: object) -> None:
    """Compare outputs, gradients and statistics of two steps."""
    layer, whole = hvd.SyncBatchNorm(rest[0], **options).double(), _plain(rest, options)
    for step in range(2):
        x, incoming = (_random(sum(counts), rest, 2 * step + k) for k in range(2))
        mine = x.split(counts)[hvd.rank()].clone().requires_grad_()
        x.requires_grad_()
        layer.zero_grad()
        whole.zero_grad()
        found, expected = layer(mine), whole(x)
        found.backward(incoming.split(counts)[hvd.rank()])
        expected.backward(incoming)
        _close(found, expected.split(counts)[hvd.rank()])
        assert mine.grad is not None
        assert x.grad is not None
        _close(mine.grad, x.grad.split(counts)[hvd.rank()])
        for p, q in zip(layer.parameters(), whole.parameters(), strict=True):
            _close(hvd.allreduce(p.grad, op=hvd.Sum), q.grad)
    for name, value in whole.state_dict().items():
        _close(layer.state_dict()[name], value)


def _plain(rest: tuple[int, ...], options: dict[str, object]) -> nn.Module:
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(rest)]
    return kind(rest[0], **options).double()  # type: ignore[arg-type]


def _random(count: int, rest: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(count, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def _close(found: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


BODIES = bodies(globals())
