"""Interleaved timing: in every round each variant runs one short block, so that all see the same machine."""

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
"""Seconds of a block, where an iteration is not longer."""

UNAVAILABLE = (ImportError, OSError, RuntimeError, UserError)
"""What a variant raises that cannot be had on this machine; any other exception is a mistake, and ends the bench."""


class Wrong(Exception):
    """A variant whose result is not that of the reference."""

    exit_code = ExitCode.FAILURE


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: the same on every rank, and another one each time."""
    return random.Random(number).sample(names, len(names))


@dataclass(frozen=True)
class Bench:
    """`pairs` rounds of each case; `tick` is called after every round."""

    world: World
    pairs: int
    tick: Callable[[], None]

    def measure(self, case: Case[V], names: Sequence[str]) -> dict[str, Any]:
        """Of every variant the seconds of an iteration, one number a round, or why it is unavailable."""
        variants, unavailable = self._create(case, names)
        for name, variant in variants.items():
            self._check(case, name, variant)
        found = {name: self._prepare(variant) for name, variant in variants.items()}
        for number in range(self.pairs):
            for name in order(list(variants), number):
                found[name]["rounds"].append(self._block(variants[name], found[name]["iterations"]))
            self.tick()
        for variant in variants.values():
            variant.close()
        return {"variants": found, "unavailable": unavailable}

    def _create(self, case: Case[V], names: Sequence[str]) -> tuple[dict[str, V], dict[str, str]]:
        made = {name: self._attempt(case, name) for name in names}
        unavailable = {name: reason for name, reason in made.items() if isinstance(reason, str)}
        return {name: v for name, v in made.items() if not isinstance(v, str)}, unavailable

    def _attempt(self, case: Case[V], name: str) -> V | str:
        made: V | str
        try:
            made = case.create(name, self.world)
            made.pause()
        except UNAVAILABLE as error:
            made = f"{type(error).__name__}: {error}"
        reasons = self.world.gather(made if isinstance(made, str) else None)
        return next((reason for reason in reasons if reason), made)

    def _check(self, case: Case[V], name: str, variant: V) -> None:
        variant.resume()
        problems = self.world.gather(case.check(variant, self.world))
        variant.pause()
        for rank, problem in enumerate(problems):
            if problem:
                raise Wrong(f"{name} in {case} on rank {rank}: {problem}")

    def _prepare(self, variant: Variant) -> dict[str, Any]:
        """Warm up, and find out what does not change from round to round."""
        before = variant.comm.bytes_sent if variant.comm else 0
        iterations, seconds = 1, self._block(variant, 1)
        sent = (variant.comm.bytes_sent - before) // 2 if variant.comm else None
        while iterations * seconds < BLOCK / 2:
            iterations *= 4
            seconds = self._block(variant, iterations)
        iterations = max(1, round(BLOCK / seconds))
        return {"iterations": iterations, "bytes_sent": sent, **variant.facts(), "rounds": []}

    def _block(self, variant: Variant, iterations: int) -> float:
        """Seconds of an iteration on the slowest rank, after one that brings the variant's memory into the caches."""
        variant.resume()
        variant.run()
        self.world.barrier()
        begin = time.perf_counter()
        for _ in range(iterations):
            variant.run()
        seconds = time.perf_counter() - begin
        variant.pause()
        return max(self.world.gather(seconds)) / iterations
