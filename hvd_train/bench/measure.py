"""Interleaved timing.

In every round each variant runs one short block, so that all variants see the same load.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvd_train.bench.base import Case, V, Variant
from hvd_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from hvd_train.bench.world import World

BLOCK = 0.03
"""Seconds of a block. A block has at least one iteration, however long."""

UNAVAILABLE = (ImportError, OSError, RuntimeError, UserError)
"""Exceptions of a variant that this machine cannot run. Any other exception is a bug and ends
the bench."""


class WrongResult(Exception):
    """The result of a variant differs from the reference."""

    exit_code = ExitCode.FAILURE


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of round `number`: a random permutation of `names`, the same on every rank."""
    return random.Random(number).sample(names, len(names))


@dataclass(frozen=True)
class Bench:
    """The timing of cases in `pairs` rounds each. `tick` is called after every round."""

    world: World
    pairs: int
    tick: Callable[[], None]

    def measure(self, case: Case[V], names: Sequence[str]) -> dict[str, Any]:
        """Return each variant's seconds per iteration in every round, or why it is unavailable."""
        variants, unavailable = self._create(case, names)
        for name, variant in variants.items():
            self._check(case, name, variant)
        measured = {name: self._prepare(variant) for name, variant in variants.items()}
        for number in range(self.pairs):
            for name in order(list(variants), number):
                measured[name]["rounds"].append(self._block(variants[name], measured[name]["iterations"]))
            self.tick()
        for variant in variants.values():
            variant.close()
        return {"variants": measured, "unavailable": unavailable}

    def _create(self, case: Case[V], names: Sequence[str]) -> tuple[dict[str, V], dict[str, str]]:
        created = {name: self._attempt(case, name) for name in names}
        unavailable = {name: reason for name, reason in created.items() if isinstance(reason, str)}
        return {name: v for name, v in created.items() if not isinstance(v, str)}, unavailable

    def _attempt(self, case: Case[V], name: str) -> V | str:
        """Return the variant, or the reason of the first rank on which it is unavailable."""
        created: V | str
        try:
            created = case.create(name, self.world)
            created.backend.pause()
        except UNAVAILABLE as error:
            created = f"{type(error).__name__}: {error}"
        reasons = self.world.gather(created if isinstance(created, str) else None)
        return next((reason for reason in reasons if reason), created)

    def _check(self, case: Case[V], name: str, variant: V) -> None:
        variant.backend.resume()
        problems = self.world.gather(case.check(variant, self.world))
        variant.backend.pause()
        for rank, problem in enumerate(problems):
            if problem:
                raise WrongResult(f"{name} in {case} on rank {rank}: {problem}")

    def _prepare(self, variant: Variant) -> dict[str, Any]:
        """Warm up, and return the facts that are the same in every round."""
        before = variant.comm.bytes_sent if variant.comm else 0
        iterations, seconds = 1, self._block(variant, 1)
        sent = (variant.comm.bytes_sent - before) // 2 if variant.comm else None
        while iterations * seconds < BLOCK / 2:
            iterations *= 4
            seconds = self._block(variant, iterations)
        iterations = max(1, round(BLOCK / seconds))
        return {"iterations": iterations, "bytes_sent": sent, **variant.facts(), "rounds": []}

    def _block(self, variant: Variant, iterations: int) -> float:
        """Return the seconds per iteration on the slowest rank.

        One untimed iteration comes first and fills the caches.
        """
        variant.backend.resume()
        variant.run()
        self.world.barrier()
        begin = time.perf_counter()
        for _ in range(iterations):
            variant.run()
        seconds = time.perf_counter() - begin
        variant.backend.pause()
        return max(self.world.gather(seconds)) / iterations
