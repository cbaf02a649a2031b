"""Ranks are clients: in each round a sample of them trains on its own data, and the model goes on from what they make of it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.comm.base import broadcast_json, gather_json
from hvd_train.errors import UserError
from hvd_train.model_state import as_real
from hvd_train.optimizer import Build, ModelOptimizer, State
from hvd_train.options import Annotated, Field, Literal, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from hvd_train.privacy import ledger
from hvd_train.privacy.accountant import Accountant
from hvd_train.privacy.gaussian import clip_
from hvd_train.sync._aggregate import check
from hvd_train.sync._clients import Merge, PlainSum, PrivateMean, Robust, Sample, Sum, WeightedMean
from hvd_train.sync._flat import copy_
from hvd_train.sync._replicas import Replicas
from hvd_train.sync.base import Context, Share

_STATISTICS = "statistics."
STOP_EVERY = 16
"""Steps between two questions whether to stop: a round may be long."""


class Federated(Replicas):
    """Rounds of `local_epochs` epochs: w <- w + merge of the updates w_k - w of a sample of clients (arXiv 1602.05629).

    A client's update is of its parameters and its running statistics, and its optimizer starts every round afresh. Evaluations
    and checkpoints see the model of the last round. A round that the end of the run cuts short is merged as it stands. Another
    number of ranks is another number of clients: such a run goes on from the last round's model, with noise it is refused.

    With `noise`, the sample and the noise are of the operating system's entropy, not of the run's seed, which others may know.
    Each round is on rank 0's disk, in the ledger of `context.folder`, before its sum is released: a round that is run again
    after a crash is counted again. Where it is `discreet`, a checkpoint, which rank 0 writes, holds nothing of a single client:
    a run that was stopped inside a round goes on with the rest of that round from the last one's model.
    """

    def __init__(
        self,
        context: Context,
        sample: Sample,
        local_epochs: int,
        merge: Merge,
        *,
        clip: float | None = None,
        noise: float = 0.0,
        delta: float = 0.0,
        accountant: Accountant | None = None,
        discreet: bool = False,
    ) -> None:
        super().__init__(context)
        self._sample, self._local_epochs, self._merge = sample, local_epochs, merge
        self._clip, self._noise, self._delta = clip, noise, delta
        self._accountant, self._folder = accountant, context.folder
        self.promises_privacy = accountant is not None
        self.discreet = discreet
        self._epochs = self._own = self._samples = 0
        """Epochs that have ended; samples of this rank in the step, and in the round."""
        self._models: list[Tensor] = []
        self._statistics: dict[str, Tensor] = {}
        """The flat parameters and the running statistics of the last round's model."""
        self._counters: dict[str, tuple[Tensor, Tensor]] = {}
        """The buffers that are no floating-point numbers, by name, each with what it was at the start."""

    def roles(self) -> str:
        if self._sample.poisson:
            share = f", each of them in a round with probability {self._sample.fraction:g}"
        else:
            share = f", {self._sample.size} of them in a round"
        return f"{self.comm.size} clients{share}"

    @property
    def workers(self) -> int:
        return self.comm.size

    def share(self, epoch: int) -> Share | None:
        """In a round without clients rank 0 takes steps that do not count: an epoch has some."""
        clients = self._sample.of(epoch // self._local_epochs) or [0]
        return Share(self.comm.rank, self.comm.size) if self.comm.rank in clients else None

    def divisor(self, own: int, total: int) -> int:
        self._own = own
        return super().divisor(own, total)

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if not self.discreet:
            return super().optimizer(model, build)
        name = next((n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None), None)
        if name is not None:
            raise UserError(
                f"sync: '{name}' keeps running statistics of a client's data, which neither noise nor masks cover; "
                "take a model with group or layer normalisation, or leave out noise and secure"
            )
        name = next((n for n, t in model_state.tensors(model) if t.is_complex()), None)
        if name is not None:
            raise UserError(
                f"sync: '{name}' is complex, and noise and masks cover real numbers only; keep its real and imaginary part "
                "as two parameters, or leave out noise and secure"
            )
        name = next(iter(model_state.others(model)), None)
        if name is not None:
            raise UserError(
                f"sync: '{name}' is state beside tensors, which neither noise nor masks cover; take a model without it, or leave "
                "out noise and secure"
            )
        self._optimizer = _Discreet(model, build)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        self._model = model
        super().start(model)
        self._counters = {n: (b, b.clone()) for n, b in model.named_buffers() if not b.is_floating_point()}

    def follow(self) -> None:
        self._models += [t.clone() for t in self.flat.tensors[len(self._models) :]]
        if not self._statistics:
            self._statistics = {name: b.clone() for name, b in model_state.statistics(self._model).items()}

    def on_parameters(self, step: int) -> None:
        super().on_parameters(step)
        self._samples += self._own

    def on_epoch(self, epoch: int) -> None:
        if (epoch + 1) % self._local_epochs == 0:
            self.merge()
        self._epochs = epoch + 1

    def finish(self) -> bool:
        cut_short = self._apart
        super().finish()
        return cut_short

    def meets(self, step: int) -> bool:
        return (step + 1) % STOP_EVERY == 0

    def average_(self) -> None:
        """Every rank takes over the round's model."""
        self._check_counters()
        clients = self._sample.of(self._epochs // self._local_epochs)
        now, last = self._shared()
        update = _flat(now) - _flat(last)
        if self._clip:
            clip_(update, self._clip)
        self._account()
        change = self._merge(update, self._samples if self.comm.rank in clients else 0, clients).to(update)
        parts = [as_real(before) for before in last]
        for before, piece in zip(parts, change.split([t.numel() for t in parts]), strict=True):
            before.add_(piece.view(before.shape))
        copy_(now, last)
        self._optimizer.torch.state.clear()
        self._samples = 0

    def _account(self) -> None:
        """Count the round whose sum is about to be released; on rank 0's disk before anything of it leaves a rank."""
        if self._accountant:
            self._accountant.add(self._noise, self._sample.fraction)
            if self._folder and self.comm.rank == 0:
                ledger.write(self._folder, self._accountant.processes)
            self.comm.barrier()

    def _shared(self) -> tuple[list[Tensor], list[Tensor]]:
        """What clients train, and what it was in the last round's model; collective.

        Running statistics that training has resized on some rank are that rank's own from then on.
        """
        now = model_state.statistics(self._model)
        last = self._statistics
        kept = [name for name, b in now.items() if name in last and last[name].shape == b.shape]
        common = set(kept).intersection(*gather_json(self.comm, kept))
        names = [name for name in kept if name in common]
        return (
            [*self.flat.tensors, *(now[name] for name in names)],
            [*self._models, *(last[name] for name in names)],
        )

    def _check_counters(self) -> None:
        if not self.discreet:
            return
        there = dict(self._model.named_buffers())
        changed = next((n for n, (now, before) in self._counters.items() if not torch.equal(now, before)), None)
        resized = (n for n, last in self._statistics.items() if n not in there or there[n].shape != last.shape)
        changed = changed or next(resized, None)
        if changed is not None:
            raise UserError(
                f"sync: buffer '{changed}' changes while a client trains, and noise and masks cover floating-point numbers "
                "of a fixed shape only; take a model without it, or leave out noise and secure"
            )

    @contextmanager
    def agreed(self) -> Iterator[None]:
        self._check_counters()
        now, last = self._shared()
        own = [t.clone() for t in now]
        copy_(now, last)
        try:
            yield
        finally:
            copy_(now, own)

    def figures(self) -> dict[str, float]:
        """`epsilon` holds against outsiders, who see the models; `epsilon_ranks` against who knows the rounds' clients too."""
        if self._accountant is None:
            return {}
        known = self._accountant.epsilon(self._delta, sampled=False)
        return {"epsilon": self._accountant.epsilon(self._delta), "epsilon_ranks": known}

    def summary(self) -> dict[str, Any]:
        if self._accountant:
            released = {"rounds_released": self._accountant.rounds}
            return {"rounds": self.merges, **released, **self.figures(), "delta": self._delta}
        return {"rounds": self.merges, **({} if self.discreet else {"drift": super().summary()["drift"]})}

    def state_dict(self) -> dict[str, Any]:
        spent = [list(s) for s in self._accountant.spent] if self._accountant else []
        return {**super().state_dict(), "epochs": self._epochs, "clients": self.comm.size, "spent": spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._accountant:
            spent = [(noise, fraction, count) for noise, fraction, count in state.get("spent", [])]
            if ledger.rounds(spent) < state.get("merges", 1) or state.get("clients") != self.comm.size:
                raise UserError(
                    "--resume: no epsilon holds for this run, whose checkpoint is of other clients or has rounds without noise; "
                    "resume on as many ranks and with sync.noise, or start anew"
                )
            if self._accountant.rounds < ledger.rounds(spent):
                self._accountant.processes = {"checkpoint": spent}
        elif state.get("spent"):
            self.begun_anew.append(
                "sync.noise was set, is 0: no epsilon holds for rounds from here on, and none is reported"
            )
        super().load_state_dict(state)

    def go_on(self, state: dict[str, Any]) -> None:
        super().go_on(state)
        self._epochs = state["epochs"] if "epochs" in state else state["round"] * self._local_epochs

    def rank_state(self) -> dict[str, Tensor]:
        if self.discreet:
            return {}
        last = {_STATISTICS + name: b.clone() for name, b in self._statistics.items()}
        return {**super().rank_state(), **last, "samples": torch.tensor(self._samples)}

    @torch.no_grad()
    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        self._samples = int(state["samples"])
        self._statistics = {
            name.removeprefix(_STATISTICS): t.clone() for name, t in state.items() if name.startswith(_STATISTICS)
        }

    def _look(self, own: Any) -> None:
        if not self.discreet:
            super()._look(own)


class _Discreet(ModelOptimizer):
    """Its state is of a client's gradients and stays with the client."""

    def state(self) -> State:
        return {}


def _flat(tensors: list[Tensor]) -> Tensor:
    """All values in one real vector, in float32 at least.

    In halves, rounding would make an update longer than `clip`, and noise coarse.
    """
    return torch.cat([as_real(t).reshape(-1).to(torch.promote_types(as_real(t).dtype, torch.float32)) for t in tensors])


def create(
    context: Context,
    *,
    fraction: Annotated[float, Field(gt=0, le=1), "of the clients that train in a round, one at least"] = 1.0,
    local_epochs: Annotated[PositiveInt, "epochs of a round"] = 1,
    aggregate: Annotated[
        Literal["mean", "krum", "median", "trimmed_mean"],
        "of the clients' updates; all but mean withstand poisoned ones",
    ] = "mean",
    byzantine: Annotated[NonNegativeInt, "poisoned clients of a round that aggregate is to withstand"] = 0,
    clip: Annotated[PositiveFloat | None, "largest norm of a client's update"] = None,
    noise: Annotated[
        NonNegativeFloat,
        "differential privacy: deviation, in units of clip, of the noise in the sum of updates that no single rank knows",
    ] = 0.0,
    delta: Annotated[float, Field(gt=0, lt=1), "probability that epsilon does not hold; below 1 / clients"] = 1e-5,
    secure: Annotated[bool, "secure aggregation: updates travel under masks that cancel in their sum"] = False,
    threshold: Annotated[
        PositiveInt | None,
        "with secure: fewest updates in a sum, of which threshold - 2 may be of colluding clients; "
        "default: more than half of the clients, at least 3",
    ] = None,
) -> Federated:
    comm = context.comm
    _check_privacy(aggregate, clip, noise, delta, comm.size)
    _check_secure(aggregate, secure, threshold)
    seed = broadcast_json(comm, secrets.randbits(64)) if noise else context.seed
    sample = Sample(comm.size, fraction, seed, poisson=bool(noise))
    _check_byzantine(aggregate, byzantine, sample.size)
    add: Sum = _secure_sum(context, comm.size if noise else sample.size, threshold) if secure else PlainSum(comm)
    merge: Merge = Robust(comm, aggregate, byzantine) if aggregate != "mean" else WeightedMean(add)
    accountant = None
    if noise and clip:
        deviation = noise * clip * _beside_own(comm.size)
        _check_fixed_point(secure, clip, deviation, comm.size)
        merge = PrivateMean(add, comm.size, deviation, fraction * comm.size)
        accountant = _accountant(context)
    return Federated(
        context,
        sample,
        local_epochs,
        merge,
        clip=clip,
        noise=noise,
        delta=delta,
        accountant=accountant,
        discreet=bool(noise) or secure,
    )


def _beside_own(ranks: int) -> float:
    """By how much the noise is raised such that `noise` is left of it to each of `ranks`, which knows its own equal part."""
    return math.sqrt(ranks / max(1, ranks - 1))


def _check_fixed_point(masked: bool, clip: float, deviation: float, ranks: int) -> None:
    """Masked numbers are multiples of 2^-24: noise must be far above that, and no client's part of the sum too large."""
    if not masked:
        return
    from hvd_train.privacy import secure

    finest, largest = 16 / secure.SCALE * math.sqrt(ranks), secure.limit(ranks)
    if deviation < finest or clip + 9 * deviation >= largest:  # a number of the generator is below 9 deviations
        raise UserError(
            f"sync.clip: with secure: true, noise of deviation {deviation:g} does not go into fixed point; "
            f"expected clip * noise from about {finest:.2g} to {largest / 9:.2g}"
        )


def _accountant(context: Context) -> Accountant:
    """It knows what earlier starts of this run have released; collective."""
    accountant = Accountant()
    told: list[Any] = []
    if context.comm.rank == 0:
        try:
            told = [ledger.read(context.folder, context.source), None]
        except UserError as error:
            told = [{}, str(error)]
    released, problem = broadcast_json(context.comm, told)
    if problem:
        raise UserError(problem)
    accountant.processes = {process: [(n, q, count) for n, q, count in spent] for process, spent in released.items()}
    return accountant


def _secure_sum(context: Context, clients: int, threshold: int | None) -> Sum:
    """Imported where it is used only: not every installation has pycryptodome."""
    from hvd_train.sync._secure import FEWEST, SecureSum

    if clients < FEWEST:
        raise UserError(
            f"sync.secure: a round of {'one client' if clients == 1 else 'two clients'} has nobody to hide among, as of two "
            f"updates each client reads the other's off the sum; expected {FEWEST} clients or more: "
            "start more ranks, or raise fraction"
        )
    threshold = threshold or max(FEWEST, clients // 2 + 1)
    if not FEWEST <= threshold <= clients:
        raise UserError(
            f"sync.threshold: expected {FEWEST} to {clients}, the clients that take part in a sum, got {threshold}; "
            "of two updates each client reads the other's off the sum"
        )
    return SecureSum(context.comm, threshold)


def _check_privacy(aggregate: str, clip: float | None, noise: float, delta: float, clients: int) -> None:
    if noise and not clip:
        raise UserError("sync.noise needs sync.clip, the norm to which updates are clipped, such as clip: 1.0")
    if noise and not 1e-12 <= noise <= 1e6:
        raise UserError(f"sync.noise: expected 0, or 1e-12 to 1e6, for which an epsilon can be computed, got {noise:g}")
    if noise and aggregate != "mean":
        raise UserError(
            f"sync.noise hides a client in a sum, and '{aggregate}' takes none: choose aggregate: mean, or noise: 0"
        )
    if noise and delta >= 1 / clients:
        raise UserError(f"sync.delta: with {clients} clients expected less than {1 / clients:g}, got {delta:g}")


def _check_secure(aggregate: str, secure: bool, threshold: int | None) -> None:
    if secure and aggregate != "mean":
        raise UserError(f"sync.secure: '{aggregate}' needs single updates; choose aggregate: mean or secure: false")
    if threshold and not secure:
        raise UserError("sync.threshold is that of secure aggregation: add secure: true, or leave it out")


def _check_byzantine(aggregate: str, byzantine: int, clients: int) -> None:
    if aggregate == "mean" and byzantine:
        raise UserError(
            "sync.byzantine: mean withstands no poisoned client; choose aggregate: krum, median or trimmed_mean"
        )
    if aggregate != "mean":
        check(aggregate, clients, byzantine)
