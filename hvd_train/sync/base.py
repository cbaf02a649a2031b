"""The contract of a sync strategy: what ranks agree on, and when.

A strategy is a file in this package whose `create(context, **options)` returns a `SyncStrategy`. The trainer alone calls
the hooks; a strategy overrides those it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.comm.base import Communicator, gather_json
from hvd_train.compress.base import Compressor
from hvd_train.compress.none import Identity
from hvd_train.errors import UserError
from hvd_train.optimizer import Build, ModelOptimizer

OPTIMIZER = "optimizer"
"""How the names begin in `rank_state` of what an optimizer of this rank alone remembers."""

RESIDUALS = "gradients travel in other buckets than before: the state of compression begins anew"


@dataclass(frozen=True)
class Context:
    """What every strategy is given: the ranks, the compressor, the bytes of gradients to reduce at once, the run's seed.

    `fusion_bytes` is None where the strategy is to measure them (`fusion.measured`). `split`: a rank has a part of the model
    only, and `comm` joins the ranks that have the same one.
    """

    comm: Communicator
    compressor: Compressor
    fusion_bytes: int | None = None
    seed: int = 0
    split: bool = False
    folder: Path | None = None
    """Of the run, on rank 0's disk."""
    source: Path | None = None
    """The run folder that this run goes on from, or a checkpoint in it."""

    @property
    def compresses(self) -> bool:
        return not isinstance(self.compressor, Identity)


class Share(NamedTuple):
    """Which part of the samples a rank trains on: that of `worker` among `workers`."""

    worker: int
    workers: int


def named(ranks: range) -> str:
    """`ranks` in words, for `SyncStrategy.roles`."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"


class SyncStrategy:
    """Hooks around a step; every rank of `world` calls them in the same order.

    A rank's gradient is that of the sum of its samples' losses over `divisor`. By default this is the number of samples of
    all ranks, so that the sum over ranks is the gradient of the whole step.
    """

    evaluates_own: bool = False
    """Evaluations are of each rank's own model, on its part of the held-out samples, rather than of what ranks agree on."""

    waited: float = 0.0
    """Seconds that communication took within backward passes so far."""

    promises_privacy: bool = False
    """To the owners of samples, each of which must therefore have the same ones in every epoch."""

    fusion_bytes: int | None = None
    """Bytes of gradients that are reduced at once, where the strategy fuses them."""

    discreet: bool = False
    """What only this rank's samples have made stays with the rank: neither its training loss nor its own state is recorded."""

    stopped: bool = False
    """Another rank, which this one does not wait for, had a signal to stop."""

    takes_parts: ClassVar[bool] = False
    """It needs no more of the model than the part that a rank has, where the model is split (`parallel` in the YAML)."""

    def __init__(self, context: Context) -> None:
        if context.split and not self.takes_parts:
            raise UserError(
                "sync.strategy: this one needs the whole model on every rank; "
                "take 'allreduce' or 'local_sgd', or set parallel.pipeline and parallel.tensor to 1"
            )
        self.comm = context.comm
        self.lost: list[int] = []
        """Ranks that have died and that the others go on without."""
        self.report: Callable[[int], None] = lambda rank: None
        """Tells the command of such a rank at once, from any thread."""
        self.begun_anew: list[str] = []
        """What of a checkpoint `start` found not to fit, a sentence each."""
        self.score: Callable[[], float] | None = None
        """How good the model is on held-out samples, as it is on each rank: more is better; collective. None: there are none."""

    @property
    def world(self) -> Communicator:
        """Over which the trainer agrees on lengths, metrics, stopping and checkpoints: this rank alone, where none waits."""
        return self.comm

    def share(self, epoch: int) -> Share | None:
        """This rank's part of the data in `epoch`; None where it takes part without samples, as a server does."""
        return Share(self.comm.rank, self.comm.size)

    @property
    def workers(self) -> int:
        """By how many ranks `schedule.scale_by_world_size` multiplies the learning rate."""
        share = self.share(0)
        return share.workers if share else 1

    def divisor(self, own: int, total: int) -> int:
        """What a rank divides its sum of losses by, in a step in which it has `own` samples of `total`; never zero."""
        return total

    def objective(self, part: float) -> float:
        """What the step minimises, of which `part` is this rank's: by default the sum over ranks."""
        total = torch.tensor(part, dtype=torch.float64)
        self.comm.all_reduce_(total, "sum")
        return float(total)

    def roles(self) -> str:
        """Which ranks do what, for the first line that a run prints."""
        return f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        """Who updates which parameters: by default every rank all of them. Called once, before `start`."""
        return ModelOptimizer(model, build)

    def start(self, model: nn.Module) -> None:
        """Before the first step: by default every rank takes over what the model of rank 0 holds."""
        model_state.broadcast_(model, self.comm)

    def serve(self) -> bool:
        """After `start`: True says that this rank was a server, is done, and is to take no step."""
        return False

    def on_loss(self, loss: float, samples: int) -> None:
        """After the forward passes: the mean loss of this rank's samples in the step, where it has some."""

    def on_backward(self, step: int) -> None:
        """Before the last backward pass of a step: a gradient that it completes is final."""

    def on_gradients(self, step: int) -> None:
        """After backward, before clipping and the optimizer. A rank without samples comes here without any backward pass."""

    def on_parameters(self, step: int) -> None:
        """After the optimizer."""

    def on_epoch(self, epoch: int) -> None:
        """After the last step of `epoch`, before it is evaluated."""

    def figures(self) -> dict[str, float]:
        """What to record beside the metrics of an evaluation; asked where they are recorded."""
        return {}

    def meets(self, step: int) -> bool:
        """Whether ranks wait for one another in `step` anyway, so that the trainer may ask all of them whether to stop."""
        return True

    def ended(self) -> str | None:
        """Why the run is over for this rank too, where another one that it does not wait for has ended it."""
        return None

    def end(self, reason: str) -> None:
        """This rank, which alone evaluates, ends the run before its length for `reason`; before `finish`."""

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """While evaluating and saving: `model` has the parameters that the ranks of `world` agree on."""
        yield

    def finish(self) -> bool | None:
        """After the last step, before the final evaluation; not called where a signal has stopped the run.

        True: what ranks agree on is another model now than an evaluation or a checkpoint after that step has seen.
        """

    def leave(self) -> None:
        """The last call, after the final checkpoint."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, where this rank is told; between `finish` and `leave`."""
        return gather_json(self.comm, value)

    def summary(self) -> dict[str, Any]:
        """What the strategy chose by itself, for the run's summary.json."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs and every rank has alike, of tensors, numbers, text, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, before `start`; of nothing, where the checkpoint is of another strategy."""

    def rank_state(self) -> dict[str, Tensor]:
        """What resuming needs and is this rank's own; names of compression's state begin with `fusion.REDUCER`."""
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """The reverse of `rank_state`, before `start`; not called where the number of ranks has changed.

        Without `OPTIMIZER` or `fusion.REDUCER` where another optimizer or compressor makes that of no use (`resume.RULES`).
        """


class OwnGradient(SyncStrategy):
    """The base of strategies in which each rank goes by its own samples' gradient alone."""

    def divisor(self, own: int, total: int) -> int:
        return max(own, 1)

    def objective(self, part: float) -> float:
        return part
