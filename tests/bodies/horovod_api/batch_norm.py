"""SyncBatchNorm on processors: against torch's own batch normalisation of the batch of all ranks."""

from __future__ import annotations

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


def _compare(hvd: Hvd, rest: tuple[int, ...], counts: list[int], **options: object) -> None:
    """Outputs, gradients and statistics of two steps."""
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
