"""Tensor fusion: gradients are packed into flat buckets.

Each bucket is reduced by one collective during backward. Buckets follow the reverse order of the
parameters, which is roughly the order in which backward completes gradients. Buckets are issued
strictly one after another, so that every rank issues the same sequence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.gradients.compression.base import BucketLayout, Compressor
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.reduction import Reduction, seed_of

FIXED = 16 << 20
"""Bytes of a bucket with a compressor whose result depends on the bucket.

A measured size would differ between runs.
"""

_PROBES = (64 * 1024, 1024 * 1024)
"""Bytes of the two reductions that separate latency from bandwidth."""

_BOUNDS = (1 << 20, 64 << 20)
"""Least and most bytes of a bucket whose size is measured.

The first bucket starts early, the last does not hold all gradients.
"""


def plan(sizes: Sequence[int], kinds: Sequence[Any], limit: int) -> list[list[int]]:
    """Assign tensors, last first, to buckets of one kind (dtype, device) and at most `limit` bytes.

    `sizes` are bytes. A tensor above the limit has a bucket of its own; with a limit of 0 every
    tensor has one.
    """
    buckets: list[list[int]] = []
    room: dict[Any, tuple[list[int], int]] = {}
    for i in reversed(range(len(sizes))):
        bucket, used = room.get(kinds[i], ([], limit + 1))
        if used + sizes[i] > limit:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(i)
        room[kinds[i]] = (bucket, used + sizes[i])
    return buckets


def measured(comm: Communicator, device: torch.device) -> int:
    """Return the bytes from which latency is at most a tenth of a reduction's time.

    It is a power of two, equal on all ranks. Collective. Measures two reductions of different
    sizes.
    """
    short, long = (_seconds(comm, nbytes, device) for nbytes in _PROBES)
    per_byte = max(long - short, 1e-12) / (_PROBES[1] - _PROBES[0])
    latency = max(short - per_byte * _PROBES[0], 0.0)
    size = torch.tensor(10 * latency / per_byte, dtype=torch.float64)
    comm.all_reduce_(size, "max")
    least, most = _BOUNDS
    return next(n for n in (least << i for i in range(64)) if n >= min(float(size), most))


def _seconds(comm: Communicator, nbytes: int, device: torch.device) -> float:
    """Return the median time of a reduction of `nbytes`, measured after one that warms up."""
    flat = comm.allocate(nbytes // 4, torch.float32, device)
    times = []
    for _ in range(6):
        comm.barrier()
        begin = time.perf_counter()
        comm.all_reduce_(flat, "sum")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


class Bucket:
    """The gradients of some parameters in one flat tensor, followed by a flag for each.

    A flag is 1 if this rank has a gradient. Flags are reduced with the gradients. A parameter that
    no rank used keeps `grad = None`, as in one process, and the optimizer skips it.
    """

    def __init__(self, parameters: list[nn.Parameter], comm: Communicator, compressor: Compressor, seed: int) -> None:
        self.parameters = parameters
        first, total = parameters[0], sum(p.numel() for p in parameters)
        self.flat = comm.allocate(total + len(parameters), first.dtype, first.device)
        gradients = self.flat[:total].split([p.numel() for p in parameters])
        self._views = [gradient.view(p.shape) for gradient, p in zip(gradients, parameters, strict=True)]
        self._flags = self.flat[total:]
        self._missing: set[int] = set()
        layout = BucketLayout([p.shape for p in parameters], first.device, seed)
        self._reducer = (compressor if first.is_floating_point() else Identity()).reducer(layout, comm)
        self._work: Work | None = None

    def open(self) -> None:
        """Expect a gradient of every parameter."""
        self._missing = set(range(len(self.parameters)))

    def put(self, i: int) -> None:
        """Copy the gradient of parameter `i` into the bucket, or zeros if there is none."""
        gradient = self.parameters[i].grad
        self._missing.discard(i)
        self._flags[i] = gradient is not None
        if gradient is None:
            self._views[i].zero_()
        elif gradient.data_ptr() != self._views[i].data_ptr():
            self._views[i].copy_(gradient)

    @property
    def complete(self) -> bool:
        return not self._missing

    def issue(self) -> None:
        """Start the reduction. Parameters that are still missing count as unused."""
        for i in tuple(self._missing):
            self.put(i)
        self._work = self._reducer.sum_async_(self.flat)

    def collect(self) -> None:
        """Wait for the reduction and make the parameters' gradients views of its result."""
        assert self._work is not None, "collect() needs one issue() before it"
        self._work.wait()
        self._work = None
        for p, view, used in zip(self.parameters, self._views, self._flags.tolist(), strict=True):
            p.grad = view if used else None

    def state(self) -> dict[str, Tensor]:
        """Return the state of this rank's compressor. Overwriting these tensors restores it."""
        return self._reducer.state()


class GradientBuckets(Reduction):
    """Sums the gradients of a model over all ranks and overlaps the sums with the backward pass.

    A parameter that is unfrozen later joins in the first step in which it requires a gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: Communicator,
        compressor: Compressor,
        fusion_bytes: int,
        seed: int = 0,
    ) -> None:
        self._comm, self._compressor, self._fusion_bytes, self._seed = comm, compressor, fusion_bytes, seed
        self.buckets: list[Bucket] = []
        self._frozen = list(parameters)
        self._armed = False
        self._next = 0
        self._adopt()

    @torch.no_grad()
    def arm(self) -> None:
        """Let the coming backward pass reduce each bucket once its last gradient is complete."""
        self._adopt()
        self._armed, self._next = True, 0
        for bucket in self.buckets:
            bucket.open()

    @torch.no_grad()
    def reduce(self) -> None:
        """Issue the remaining buckets, wait for all of them, and set the gradients."""
        if not self._armed:
            self.arm()
        self._armed = False
        for bucket in self.buckets[self._next :]:
            bucket.issue()
        for bucket in self.buckets:
            bucket.collect()

    def _adopt(self) -> None:
        """Make buckets for the parameters that have been unfrozen since the last call."""
        parameters = [p for p in self._frozen if p.requires_grad]
        if not parameters:
            return
        self._frozen = [p for p in self._frozen if not p.requires_grad]
        kinds = [(p.dtype, p.device) for p in parameters]
        for group in plan([p.numel() * p.element_size() for p in parameters], kinds, self._fusion_bytes):
            seed = seed_of(self._seed, len(self.buckets), self._comm)
            bucket = Bucket([parameters[i] for i in group], self._comm, self._compressor, seed)
            self.buckets.append(bucket)
            for i, p in enumerate(bucket.parameters):
                p.register_post_accumulate_grad_hook(self._hook(bucket, i))

    def _hook(self, bucket: Bucket, i: int) -> Any:
        def complete(_: Tensor) -> None:
            if self._armed:
                with torch.no_grad():
                    bucket.put(i)
                    self._issue_complete()

        return complete

    def _issue_complete(self) -> None:
        began = time.perf_counter()
        while self._next < len(self.buckets) and self.buckets[self._next].complete:
            self.buckets[self._next].issue()
            self._next += 1
        self.waited += time.perf_counter() - began
