"""Let the agent of a checkpoint play held-out episodes, and measure its returns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.agents.player import TOGETHER, Player, seed_of
from hvd_train.comm.agree import together
from hvd_train.comm.objects import gather_json
from hvd_train.compute.acting import Acting
from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.data.batch import Batch
from hvd_train.data.environments.base import Episodes
from hvd_train.data.environments.copies import Copies
from hvd_train.errors import UserError
from hvd_train.rank.build import Built
from hvd_train.rank.task import TaskContext
from hvd_train.trained import film
from hvd_train.trained.film import Frame
from hvd_train.trained.restore import rebuild
from hvd_train.training.evaluation import held_out_part


@dataclass(frozen=True)
class Play:
    """Each rank plays consecutive episodes, whose results do not depend on the number of ranks."""

    episodes: int
    stochastic: bool
    render: str | None

    @torch.no_grad()
    def run(self, context: TaskContext) -> dict[str, Any]:
        comm, built = context.comm, rebuild(context)
        if built.agent is None:
            raise UserError("the run has no agent: its held-out data are samples, not episodes")
        player = Player(built.agent, Acting(built.model, built.precision), explores=self.stochastic)
        split = replace(built.data.test, number=self.episodes)
        render = partial(self._film, player, split, context.folder)
        frames = together(comm, render if comm.rank == 0 else lambda: None)
        results, seconds = self._play(context, player, split, built)
        metrics = {name: value for meter in built.meters for name, value in meter.compute(comm).items()}
        played = [row for of_rank in gather_json(comm, _rows(results)) for row in of_rank]
        steps = sum(row["length"] for row in played)
        return {
            "kind": "episodes",
            "episodes": self.episodes,
            "stochastic": self.stochastic,
            "metrics": metrics,
            "threshold": split.environments.threshold,
            "played": [{"seed": seed_of(split, number), **row} for number, row in enumerate(played)],
            "frames": frames,
            "ranks": comm.size,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "env_steps": steps,
            "env_steps_per_second": steps / seconds,
        }

    def _play(self, context: TaskContext, player: Player, split: Episodes, built: Built) -> tuple[list[Tensor], float]:
        """Return the results of this rank's episodes, and the seconds of the slowest rank; collective."""
        comm, found = context.comm, []
        own = held_out_part(split, None, comm)
        comm.barrier()
        begin = time.perf_counter()
        with context.progress("playing", -(-len(own) // TOGETHER)) as advance:

            def observe(results: Tensor, batch: Batch) -> None:
                found.append(results)
                for meter in built.meters:
                    meter.update(results, batch)
                advance()

            together(comm, partial(player.evaluate, split, own, observe))
        player.close()
        return found, time.perf_counter() - begin

    def _film(self, player: Player, split: Episodes, folder: Path) -> int | None:
        """Write the first episode to `folder`, and return the number of its pictures."""
        if self.render is None:
            return None
        return film.write(_pictures(player, split), folder / self.render, split.environments.frame_rate)


def _pictures(player: Player, split: Episodes) -> Iterator[Frame]:
    """Yield what the first episode looks like before its first step and after each step."""
    name = split.environments.name
    try:
        copies = Copies(split.environments, [0], pictures=True)
    except UserError as error:
        raise UserError(f"--render: '{name}' cannot be made with pictures ({error}); leave --render out") from None
    try:
        for _ in player.moves(split, copies):
            yield _picture(copies, name)
        yield _picture(copies, name)
    finally:
        copies.close()


def _picture(copies: Copies, name: str) -> Frame:
    try:
        found = np.asarray(copies.made[0].render())
    except Exception as error:
        raise UserError(f"--render: '{name}' raised {type(error).__name__}: {error}; leave --render out") from error
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[-1] != 3:
        raise UserError(f"--render: '{name}' renders no pictures (render_mode rgb_array); leave --render out")
    return found


def _rows(results: Sequence[Tensor]) -> list[dict[str, Any]]:
    rows = [row for part in results for row in part.tolist()]
    return [
        {"return": total, "length": int(length), "success": None if math.isnan(success) else bool(success)}
        for total, length, success in rows
    ]


def create(
    *,
    episodes: Annotated[PositiveInt, "held-out episodes"] = 100,
    stochastic: Annotated[bool, "act as in training; by default the best action is taken"] = False,
    render: Annotated[str | None, "file in the folder of the results that shows the first episode"] = None,
) -> Play:
    return Play(episodes, stochastic, render)
