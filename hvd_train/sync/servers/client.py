"""The worker's side of asynchronous parameter servers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hvd_train.comm.messages import Message
from hvd_train.errors import Stopped, UserError
from hvd_train.gradients.optimizer import Build, ModelOptimizer, State
from hvd_train.state.packing import from_tensors
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.membership import nothing
from hvd_train.sync.replicas.flat import FlatParameters
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.servers.asynchronous import AsynchronousGroup, refuse_unfreezing
from hvd_train.sync.servers.roles import Placement, Roles, by_whole_tensors, roles
from hvd_train.sync.servers.roster import FINISHED, LEFT
from hvd_train.sync.servers.server import PULL, PUSH, REPORT, STATE, Server
from hvd_train.sync.servers.shard import Run, Shard, assign_runs, joined
from hvd_train.sync.view import View

Reports = list[dict[str, Any]]
"""The report of each server, in the order of the servers."""

MakeServer = Callable[..., Server]
"""Makes a server from the arguments of `Server`."""


class _StepRecorder(torch.optim.Optimizer):
    """Takes the place of the servers' optimizer in the trainer.

    It takes the learning rate, and records whether a step was taken.
    """

    def __init__(self, of: torch.optim.Optimizer) -> None:
        (group,) = of.param_groups
        super().__init__(group["params"], {"lr": group["lr"]})
        self.taken = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.taken = True


class RemoteOptimizer(ModelOptimizer):
    """The servers' optimizer as a worker sees it.

    `fetch` returns the state that each server has of its pieces.
    """

    torch: _StepRecorder

    def __init__(self, model: nn.Module, build: Build, fetch: Callable[[], list[State]]) -> None:
        super().__init__(model, build)
        self.torch = _StepRecorder(self.torch)
        self._fetch = fetch
        self.restored: State = {}
        """The state of whole parameters that servers start from."""

    def state(self) -> State:
        pieces: dict[str, list[dict[str, Any]]] = {}
        for state in self._fetch():
            for name, values in state.items():
                pieces.setdefault(name, []).append(values)
        return {name: joined(values, self.model.get_parameter(name).shape) for name, values in pieces.items()}

    def load_state(self, state: State) -> None:
        self.restored = state

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        refuse_unfreezing([self.names[p] for p in parameters])


class ServedView(View):
    """Evaluations and checkpoints see the servers' parameters, which `on_agreed` pulls.

    The summary counts updates.
    """

    has_model_of_step = False

    def __init__(
        self,
        who: Roles,
        lost: Callable[[], list[int]],
        summarise: Callable[[Reports], dict[str, Any]],
        on_agreed: Callable[[], None] = nothing,
    ) -> None:
        """`summarise` adds the entries of a kind of server."""
        super().__init__(on_agreed)
        self._who, self._lost, self._summarise = who, lost, summarise
        self.reports: Reports = []
        """On rank 0, at the end of the run."""

    def summary(self) -> dict[str, Any]:
        staleness: Counter[int] = Counter()
        for report in self.reports:
            staleness.update(dict(report["staleness"]))
        return {
            "servers": list(self._who.serving),
            "updates": min((report["updates"] for report in self.reports), default=0),
            "staleness": _statistics(staleness),
            "lost": self._lost(),
            **self._summarise(self.reports),
        }


class ServedWorkers(SyncStrategy):
    """Workers push gradients to servers, which answer with parameters.

    `make` makes the server of a shard. Servers are threads of the first ranks or, if dedicated, the
    last ranks, which do nothing else. Sparse gradients are sent dense.
    """

    def __init__(
        self,
        context: Context,
        servers: int,
        placement: Placement,
        make: MakeServer,
        summarise: Callable[[Reports], dict[str, Any]] = lambda reports: {},
    ) -> None:
        comm = context.comm
        self._who = roles(comm.size, servers, placement)
        self._make, self._report, self._scale = make, context.report, OwnMean(comm)
        self._group = AsynchronousGroup(
            comm,
            self._who.workers,
            {0: "evaluates and saves", **dict.fromkeys(self._who.serving, "holds parameters")},
            description=str(self._who),
            serve=self._serve,
            complete=self._with_servers,
            at_end=self._announce_leaving,
            on_close=self._close,
        )
        self._view = ServedView(self._who, lambda: self._group.lost, summarise, self._pull)
        super().__init__(context, members=self._group, gradient_scale=self._scale, view=self._view)
        if context.compresses:
            raise UserError("sync.compression: every gradient goes to parameter servers uncompressed; leave it out")

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if build.groups:
            raise UserError(
                "optimizer.groups: asynchronous servers update all parameters alike; leave groups out, or set sync.strategy: "
                "allreduce"
            )
        self._build, self._whole = build, by_whole_tensors(build, "sync.strategy: allreduce")
        self._group.connect()
        self._requests = self.comm.mailbox()
        self._optimizer = RemoteOptimizer(model, build, self._states)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.members.world)
        self._gradients = [torch.zeros_like(tensor) for tensor in self.flat.tensors]
        self._places = [place for _, place in self.flat.named(self._gradients)]
        sizes = [[p.numel() for p in group] for group in self.flat.groups]
        runs = assign_runs(sizes, self._who.servers, whole=self._whole)
        self._runs = dict(zip(self._who.serving, runs, strict=True))
        if self.comm.rank in self._runs:
            self._server = self._own_server(self._runs[self.comm.rank])
            if self._who.works(self.comm.rank):
                task = self._server.run
                self._thread = threading.Thread(target=self._group.guard, args=(task,), name="ddl-server", daemon=True)
                self._thread.start()

    def on_parameters(self, step: int) -> None:
        recorder = self._optimizer.torch
        unused = self._flatten() if recorder.taken else []
        rate, samples = recorder.param_groups[0]["lr"], self._scale.units
        for server, runs in self._runs.items():
            gradients = [run.of(self._gradients) for run in runs] if recorder.taken else []
            self._requests.send(
                server, PUSH, *gradients, taken=recorder.taken, unused=unused, rate=rate, samples=samples
            )
        recorder.taken = False
        self._update()

    def finish(self) -> bool:
        self._ask(FINISHED)
        self._group.finish()
        self._group.wait_for_all()
        self._pull()
        return True

    def _own_server(self, runs: list[Run]) -> Server:
        """Return this rank's server. The first server reports lost ranks to the command."""
        names = [self._optimizer.names[p] for p in self.flat.parameters]
        shard = Shard(runs, self.flat, names, self._build, self._optimizer.restored)
        lost = self._report if self.comm.rank == self._who.serving[0] else None
        roster, sent = self._group.new_roster(), lambda: self.comm.bytes_sent
        return self._make(shard, self._requests, self._group.mail, roster, sent, lost)

    def _serve(self) -> bool:
        """Run a dedicated server until all workers have left.

        Stopped if the run was stopped by a signal.
        """
        if self._who.works(self.comm.rank):
            return False
        self._server.run()
        self._group.close(self._server.roster)
        if self._server.roster.stopped:
            raise Stopped("stopped by a signal")
        return True

    def _with_servers(self, values: list[Any]) -> list[Any]:
        """Fill in the values of dedicated servers: the bytes that they sent."""
        self._view.reports = self._fetch_reports()
        for server, report in zip(self._who.serving, self._view.reports, strict=True):
            values[server] = values[server] if self._who.works(server) else report["bytes_sent"]
        return values

    def _announce_leaving(self) -> None:
        if self.comm.rank == 0:
            self._view.reports = self._fetch_reports()
        self._ask(LEFT, lost=self._group.roster.lost)

    def _close(self) -> None:
        if self.comm.rank in self._runs and self._who.works(self.comm.rank):
            self._thread.join()
        self._requests.close()

    @torch.no_grad()
    def _flatten(self) -> list[int]:
        """Copy the gradients to flat memory.

        Return the numbers of the parameters that have none.
        """
        unused = []
        for index, (p, place) in enumerate(zip(self.flat.parameters, self._places, strict=True)):
            if p.grad is None:
                unused.append(index)
                place.zero_()
            else:
                place.copy_(p.grad.to_dense() if p.grad.is_sparse else p.grad)
        return unused

    def _pull(self) -> None:
        self._ask(PULL)
        self._update()

    @torch.no_grad()
    def _update(self) -> None:
        """Copy the servers' answers to the parameters."""
        for message in self._from_all():
            for run, values in zip(self._runs[message.source], message.tensors, strict=True):
                run.of(self.flat.tensors).copy_(values)
            self._group.roster.reason = self._group.roster.reason or message.values.get("over")

    def _states(self) -> list[State]:
        answers = self._answers(STATE)
        return [from_tensors(dict(zip(m.values["names"], m.tensors, strict=True)), STATE) for m in answers]

    def _fetch_reports(self) -> Reports:
        return [message.values["report"] for message in self._answers(REPORT)]

    def _ask(self, kind: str, **values: Any) -> None:
        for server in self._who.serving:
            self._requests.send(server, kind, **values)

    def _answers(self, kind: str) -> list[Message]:
        self._ask(kind)
        return self._from_all()

    def _from_all(self) -> list[Message]:
        """Wait for a message from each server; return them in the order of the servers."""
        received: dict[int, Message] = {}
        while len(received) < self._who.servers:
            message = self._group.next_reply()
            received[message.source] = message
        return [received[server] for server in self._who.serving]


def _statistics(staleness: Counter[int]) -> dict[str, Any]:
    total = staleness.total()
    mean = sum(tau * count for tau, count in staleness.items()) / max(total, 1)
    return {"mean": mean, "max": max(staleness, default=0), "histogram": dict(sorted(staleness.items()))}
