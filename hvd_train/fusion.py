"""Tensor fusion: gradients in flat buckets, each reduced by one collective while backward still runs.

Buckets follow the reverse order of the parameters, which is roughly the order in which backward completes them; they
are issued strictly one after another, so that every rank issues the same sequence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator, Work
from hvd_train.compress.base import Compressor, Layout
from hvd_train.compress.none import Identity


def plan(sizes: Sequence[int], kinds: Sequence[Any], limit: int) -> list[list[int]]:
    """Deal tensors, last first, into buckets of one kind (dtype, device) and of at most `limit` bytes, or one tensor.

    `sizes` are bytes. A limit of 0 gives each tensor a bucket of its own.
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


PROBES = (64 * 1024, 1024 * 1024)
"""Bytes of the two reductions that tell latency from bandwidth."""

FIXED = 16 << 20
"""Bytes of a bucket whose size is not measured, since results depend on it: two runs would differ."""

BOUNDS = (1 << 20, 64 << 20)
"""Least and most bytes of a bucket whose size is measured: the first begins early, the last does not wait for all."""


def measured(comm: Communicator, device: torch.device) -> int:
    """Bytes from which latency is at most a tenth of a reduction's time, as a power of two; collective, equal on all ranks."""
    short, long = (_seconds(comm, nbytes, device) for nbytes in PROBES)
    per_byte = max(long - short, 1e-12) / (PROBES[1] - PROBES[0])
    latency = max(short - per_byte * PROBES[0], 0.0)
    size = torch.tensor(10 * latency / per_byte, dtype=torch.float64)
    comm.all_reduce_(size, "max")
    least, most = BOUNDS
    return next(n for n in (least << i for i in range(64)) if n >= min(float(size), most))


def _seconds(comm: Communicator, nbytes: int, device: torch.device) -> float:
    """Of one reduction, the median of some after a first one."""
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
    """Gradients of some parameters in one flat tensor, followed by a flag for each: 1 where there was a gradient.

    The flags travel with the gradients, so that a parameter that no rank used keeps `grad = None`, as it would in one
    process, and the optimizer passes over it.
    """

    def __init__(self, parameters: list[nn.Parameter], comm: Communicator, compressor: Compressor, seed: int) -> None:
        self.parameters = parameters
        first, total = parameters[0], sum(p.numel() for p in parameters)
        self.flat = comm.allocate(total + len(parameters), first.dtype, first.device)
        pieces = self.flat[:total].split([p.numel() for p in parameters])
        self._views = [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
        self._flags = self.flat[total:]
        self._missing: set[int] = set()
        layout = Layout([p.shape for p in parameters], first.device, seed)
        self._reducer = (compressor if first.is_floating_point() else Identity()).reducer(layout, comm)
        self._work: Work | None = None

    def open(self) -> None:
        """Expect a gradient from every parameter."""
        self._missing = set(range(len(self.parameters)))

    def put(self, i: int) -> None:
        """Take the gradient of parameter `i`, or zeros where it has none."""
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
        """Start the reduction; parameters still missing count as unused."""
        for i in tuple(self._missing):
            self.put(i)
        self._work = self._reducer.sum_async_(self.flat)

    def collect(self) -> None:
        """Wait, and let the parameters' gradients be views of the result."""
        assert self._work is not None, "a bucket is collected once after it was issued"
        self._work.wait()
        self._work = None
        for p, view, used in zip(self.parameters, self._views, self._flags.tolist(), strict=True):
            p.grad = view if used else None

    def state(self) -> dict[str, Tensor]:
        """What the compressor of this rank goes on from; who overwrites these tensors restores it."""
        return self._reducer.state()


def seed_of(seed: int, bucket: int, comm: Communicator) -> int:
    """A seed of this rank and this bucket alone, from that of the run."""
    return (seed << 16 | bucket) * comm.size + comm.rank


REDUCER = "reducer."
"""How the names begin of what compressors go on from."""


class Reduced(Protocol):
    def state(self) -> dict[str, Tensor]:
        """As `compress.base.Reducer.state`."""


def state_of(reduced: Iterable[Reduced]) -> dict[str, Tensor]:
    """What the compressors of this rank go on from."""
    return {f"{REDUCER}{number}.{name}": t for number, b in enumerate(reduced) for name, t in b.state().items()}


def load_state_of(reduced: Iterable[Reduced], state: dict[str, Tensor]) -> bool:
    """The reverse of `state_of`; False where `state` is of other buckets or of another compressor, and is passed over.

    In `state` names of another kind may stand beside.
    """
    own = state_of(reduced)
    saved = {name: t for name, t in state.items() if name.startswith(REDUCER)}
    fits = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in saved.items()}
    for name, tensor in own.items() if fits else ():
        tensor.copy_(saved[name])
    return fits or not saved


class GradientBuckets:
    """The sum over ranks of all gradients of a model, overlapped with its backward pass.

    A parameter that does not require a gradient joins when it first does.
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
        self.waited = 0.0
        """Seconds of backward passes in which a reduction took the caller's time."""
        self._frozen = list(parameters)
        self._armed = False
        self._next = 0
        self._adopt()

    @torch.no_grad()
    def arm(self) -> None:
        """Reduce each bucket as soon as the coming backward pass has completed it."""
        self._adopt()
        self._armed, self._next = True, 0
        for bucket in self.buckets:
            bucket.open()

    @torch.no_grad()
    def reduce(self) -> None:
        """Issue what backward has not, wait for everything, and set the gradients."""
        if not self._armed:
            self.arm()
        self._armed = False
        for bucket in self.buckets[self._next :]:
            bucket.issue()
        for bucket in self.buckets:
            bucket.collect()

    def _adopt(self) -> None:
        """Give those parameters buckets that are trained by now."""
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
        def final(_: Tensor) -> None:
            if self._armed:
                with torch.no_grad():
                    bucket.put(i)
                    self._issue_complete()

        return final

    def _issue_complete(self) -> None:
        began = time.perf_counter()
        while self._next < len(self.buckets) and self.buckets[self._next].complete:
            self.buckets[self._next].issue()
            self._next += 1
        self.waited += time.perf_counter() - began
