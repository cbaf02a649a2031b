"""The worker's side of parameter servers, and who is which."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hvd_train.comm._mailbox import Message
from hvd_train.errors import Stopped, UserError
from hvd_train.optimizer import Build, ModelOptimizer, State
from hvd_train.packing import from_tensors
from hvd_train.sync._asynchronous import Asynchronous, Fixed
from hvd_train.sync._flat import FlatParameters
from hvd_train.sync._members import FINISHED, LEFT
from hvd_train.sync._server import PULL, PUSH, REPORT, STATE, Server
from hvd_train.sync._servers import Placement, by_whole_tensors, roles
from hvd_train.sync._shard import Run, Shard, deal, joined
from hvd_train.sync.base import Context


class _Steps(torch.optim.Optimizer):
    """Stands for the servers' optimizer in the trainer, which sets the learning rate and says which steps are taken."""

    def __init__(self, of: torch.optim.Optimizer) -> None:
        (group,) = of.param_groups
        super().__init__(group["params"], {"lr": group["lr"]})
        self.taken = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.taken = True


class _Served(Fixed):
    """The servers' optimizer as a worker sees it: `fetch` gets the state of each server's pieces."""

    torch: _Steps

    def __init__(self, model: nn.Module, build: Build, fetch: Callable[[], list[State]]) -> None:
        super().__init__(model, lambda parameters: _Steps(build(parameters)))
        self._fetch = fetch
        self.restored: State = {}

    def state(self) -> State:
        parts: dict[str, list[dict[str, Any]]] = {}
        for state in self._fetch():
            for name, values in state.items():
                parts.setdefault(name, []).append(values)
        return {name: joined(values, self.model.get_parameter(name).shape) for name, values in parts.items()}

    def load_state(self, state: State) -> None:
        self.restored = state


class Served(Asynchronous):
    """Workers push gradients to `servers` and are answered with parameters; a subclass makes the `Server`.

    Servers are threads of the first ranks, or, where dedicated, the last ranks, which do nothing else. Sparse gradients travel
    dense.
    """

    def __init__(self, context: Context, servers: int, placement: Placement) -> None:
        self._who = roles(context.comm.size, servers, placement)
        vital = {0: "evaluates and saves", **dict.fromkeys(self._who.serving, "holds parameters")}
        super().__init__(context, self._who.workers, vital)
        if context.compresses:
            raise UserError("sync.compression: gradients go to parameter servers one by one, as they are; leave it out")
        self.reports: list[dict[str, Any]] = []
        """What each server says of itself at the end, on rank 0."""
        self._samples = 0
        self._over: str | None = None

    def make(self, *arguments: Any) -> Server:
        """The server of a shard, of `Server`'s arguments."""
        raise NotImplementedError

    def roles(self) -> str:
        return str(self._who)

    def divisor(self, own: int, total: int) -> int:
        self._samples = own
        return super().divisor(own, total)

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._build, self._whole = build, by_whole_tensors(model, build, "sync.strategy: allreduce")
        self._connect()
        self._requests = self.comm.mailbox()
        self._optimizer = _Served(model, build, self._states)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.world)
        self._gradients = [torch.zeros_like(tensor) for tensor in self.flat.tensors]
        self._places = [place for _, place in self.flat.named(self._gradients)]
        sizes = [[p.numel() for p in group] for group in self.flat.groups]
        self._runs = dict(zip(self._who.serving, deal(sizes, self._who.servers, whole=self._whole), strict=True))
        if self.comm.rank in self._runs:
            self._server = self._found(self._runs[self.comm.rank])
            if self._who.works(self.comm.rank):
                self._thread = threading.Thread(
                    target=self._guarded, args=(self._server.run,), name="ddl-server", daemon=True
                )
                self._thread.start()

    def serve(self) -> bool:
        if self._who.works(self.comm.rank):
            return False
        self._server.run()
        self.lost = self._server.members.agreed_lost
        self._close()
        if self._server.members.stopped:
            raise Stopped("stopped by a signal")
        return True

    def on_parameters(self, step: int) -> None:
        steps = self._optimizer.torch
        unused = self._flatten() if steps.taken else []
        of_all = {"taken": steps.taken, "unused": unused, "rate": steps.param_groups[0]["lr"], "samples": self._samples}
        for server, runs in self._runs.items():
            gradients = [run.of(self._gradients) for run in runs] if steps.taken else []
            self._requests.send(server, PUSH, *gradients, **of_all)
        steps.taken = False
        self._update()

    def ended(self) -> str | None:
        return super().ended() or self._over

    @contextmanager
    def agreed(self) -> Iterator[None]:
        self._ask(PULL)
        self._update()
        yield

    def gather(self, value: Any) -> list[Any]:
        values = super().gather(value)
        if self.comm.rank == 0:
            self.reports = [message.values["report"] for message in self._answers(REPORT)]
            for server, report in zip(self._who.serving, self.reports, strict=True):
                values[server] = values[server] if self._who.works(server) else report["bytes_sent"]
        return values

    def finish(self) -> bool:
        self._ask(FINISHED)
        super().finish()
        self._ask(PULL)
        self._update()
        return True

    def leave(self) -> None:
        if self.comm.rank == 0:
            self.reports = [message.values["report"] for message in self._answers(REPORT)]
        self._ask(LEFT, lost=self.members.lost)
        super().leave()

    def summary(self) -> dict[str, Any]:
        counts: Counter[int] = Counter()
        for report in self.reports:
            counts.update(dict(report["staleness"]))
        return {
            "servers": list(self._who.serving),
            "updates": min((report["updates"] for report in self.reports), default=0),
            "staleness": _figures(counts),
            "lost": self.lost,
        }

    def _found(self, runs: list[Run]) -> Server:
        """This rank's server; the first one tells the command of the dead."""
        names = [self._optimizer.names[p] for p in self.flat.parameters]
        shard = Shard(runs, self.flat, names, self._build, self._optimizer.restored)
        first = self.comm.rank == self._who.serving[0]
        lost = self._tell_command if first else None
        return self.make(shard, self._requests, self._mail, self._book(), lambda: self.comm.bytes_sent, lost)

    def _tell_command(self, rank: int) -> None:
        self.report(rank)

    def _close(self) -> None:
        if self.comm.rank in self._runs and self._who.works(self.comm.rank):
            self._thread.join()
        self._requests.close()
        super()._close()

    @torch.no_grad()
    def _flatten(self) -> list[int]:
        """Flatten the gradients; the numbers of the parameters that have none."""
        unused = []
        for index, (p, place) in enumerate(zip(self.flat.parameters, self._places, strict=True)):
            if p.grad is None:
                unused.append(index)
                place.zero_()
            else:
                place.copy_(p.grad.to_dense() if p.grad.is_sparse else p.grad)
        return unused

    @torch.no_grad()
    def _update(self) -> None:
        for message in self._from_all():
            for run, values in zip(self._runs[message.source], message.tensors, strict=True):
                run.of(self.flat.tensors).copy_(values)
            self._over = message.values.get("over") or self._over

    def _states(self) -> list[State]:
        answers = self._answers(STATE)
        return [from_tensors(dict(zip(m.values["names"], m.tensors, strict=True)), STATE) for m in answers]

    def _ask(self, kind: str, **values: Any) -> None:
        for server in self._who.serving:
            self._requests.send(server, kind, **values)

    def _answers(self, kind: str) -> list[Message]:
        self._ask(kind)
        return self._from_all()

    def _from_all(self) -> list[Message]:
        """A message from each server, in their order."""
        found: dict[int, Message] = {}
        while len(found) < self._who.servers:
            message = self._receive()
            found[message.source] = message
        return [found[server] for server in self._who.serving]


def _figures(staleness: Counter[int]) -> dict[str, Any]:
    total = staleness.total()
    mean = sum(tau * count for tau, count in staleness.items()) / max(total, 1)
    return {"mean": mean, "max": max(staleness, default=0), "histogram": dict(sorted(staleness.items()))}
