"""Ranks are clients: in each round a sample of them trains on its own data, and the model goes on from what they make of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.base import broadcast_json
from hvd_train.errors import UserError
from hvd_train.optimizer import Build, ModelOptimizer, State
from hvd_train.options import Annotated, Field, Literal, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from hvd_train.privacy.accountant import Accountant
from hvd_train.privacy.gaussian import clip_
from hvd_train.sync._aggregate import check
from hvd_train.sync._clients import Merge, PlainSum, PrivateMean, Robust, Sample, Sum, WeightedMean
from hvd_train.sync._flat import copy_
from hvd_train.sync._replicas import Replicas
from hvd_train.sync.base import Context, Share

STOP_EVERY = 16
"""Steps between two questions whether to stop: a round may be long."""


class Federated(Replicas):
    """Rounds of `local_epochs` epochs: w <- w + merge of the updates w_k - w of a sample of clients (arXiv 1602.05629).

    A client's update is of its parameters and its running statistics, and its optimizer starts every round afresh. Evaluations
    and checkpoints see the model of the last round. A round that the end of the run cuts short is merged as it stands. Another
    number of ranks is another number of clients: such a run goes on from the last round's model, with noise it is refused.

    With `noise`, the sample and the noise are of the operating system's entropy, not of the run's seed, which others may know.
    Where it is `discreet`, a checkpoint, which rank 0 writes, holds nothing of a single client: a run that was stopped inside a
    round goes on with the rest of that round from the last one's model.
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
        discreet: bool = False,
    ) -> None:
        super().__init__(context)
        self._sample, self._local_epochs, self._merge = sample, local_epochs, merge
        self._clip, self._noise, self._delta = clip, noise, delta
        self._accountant = Accountant() if noise else None
        self.promises_privacy = bool(noise)
        self._discreet = discreet
        self._epochs = self._own = self._samples = 0
        """Epochs that have ended; samples of this rank in the step, and in the round."""
        self._models: list[Tensor] = []
        """The flat parameters and buffers of the last round's model."""
        self._buffers: list[Tensor] = []
        self._buffers_before: list[Tensor] = []

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
        if not self._discreet:
            return super().optimizer(model, build)
        name = next((n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None), None)
        if name is not None:
            raise UserError(
                f"sync: '{name}' keeps running statistics of a client's data, which neither noise nor masks cover; "
                "take a model with group or layer normalisation, or leave out noise and secure"
            )
        self._optimizer = _Discreet(model, build)
        return self._optimizer

    def start(self, model: nn.Module) -> None:
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        super().start(model)

    def follow(self) -> None:
        self._models += [t.clone() for t in self.flat.tensors[len(self._models) :]]
        if not self._buffers_before:
            self._buffers_before = [b.clone() for b in self._buffers]

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
        clients = self._sample.of(self._epochs // self._local_epochs)
        update = _flat(self._tensors) - _flat(self._before)
        if self._clip:
            clip_(update, self._clip)
        change = self._merge(update, self._samples if self.comm.rank in clients else 0, clients).to(update)
        for before, piece in zip(self._before, change.split([t.numel() for t in self._before]), strict=True):
            before.add_(piece.view(before.shape))
        copy_(self._tensors, self._before)
        self._optimizer.torch.state.clear()
        self._samples = 0
        if self._accountant:
            self._accountant.add(self._noise, self._sample.fraction)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        own = [t.clone() for t in self._tensors]
        copy_(self._tensors, self._before)
        try:
            yield
        finally:
            copy_(self._tensors, own)

    def figures(self) -> dict[str, float]:
        return {"epsilon": self._accountant.epsilon(self._delta)} if self._accountant else {}

    def summary(self) -> dict[str, Any]:
        if self._accountant:
            return {"rounds": self.merges, **self.figures(), "delta": self._delta}
        return {"rounds": self.merges, **({} if self._discreet else {"drift": super().summary()["drift"]})}

    def state_dict(self) -> dict[str, Any]:
        spent = [list(s) for s in self._accountant.spent] if self._accountant else []
        return {**super().state_dict(), "epochs": self._epochs, "clients": self.comm.size, "spent": spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._accountant:
            self._accountant.spent = [(noise, fraction, count) for noise, fraction, count in state.get("spent", [])]
            if self._accountant.rounds != state.get("merges") or state.get("clients") != self.comm.size:
                raise UserError(
                    "--resume: no epsilon holds for this run, whose checkpoint is of other clients or has rounds without noise; "
                    "resume on as many ranks and with sync.noise, or start anew"
                )
        elif state.get("spent"):
            self.begun_anew.append(
                "sync.noise was set, is 0: no epsilon holds for rounds from here on, and none is reported"
            )
        super().load_state_dict(state)

    def go_on(self, state: dict[str, Any]) -> None:
        super().go_on(state)
        self._epochs = state["epochs"] if "epochs" in state else state["round"] * self._local_epochs

    def rank_state(self) -> dict[str, Tensor]:
        if self._discreet:
            return {}
        before = {f"buffer.{i}": b.clone() for i, b in enumerate(self._buffers_before)}
        return {**super().rank_state(), **before, "samples": torch.tensor(self._samples)}

    @torch.no_grad()
    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        self._samples = int(state["samples"])
        copy_(self._buffers_before, [state[f"buffer.{i}"] for i in range(len(self._buffers_before))])

    @property
    def _tensors(self) -> list[Tensor]:
        return [*self.flat.tensors, *self._buffers]

    @property
    def _before(self) -> list[Tensor]:
        return [*self._models, *self._buffers_before]

    def _look(self, own: Any) -> None:
        if not self._discreet:
            super()._look(own)


class _Discreet(ModelOptimizer):
    """Its state is of a client's gradients and stays with the client."""

    def state(self) -> State:
        return {}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


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
        NonNegativeFloat, "differential privacy: deviation of the noise in the sum of updates, in units of clip"
    ] = 0.0,
    delta: Annotated[float, Field(gt=0, lt=1), "probability that epsilon does not hold; below 1 / clients"] = 1e-5,
    secure: Annotated[bool, "secure aggregation: updates travel under masks that cancel in their sum"] = False,
    threshold: Annotated[
        PositiveInt | None, "with secure: clients that must deliver, and may not collude; default: more than half"
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
    if noise and clip:
        merge = PrivateMean(add, comm.size, noise * clip, fraction * comm.size)
    return Federated(
        context, sample, local_epochs, merge, clip=clip, noise=noise, delta=delta, discreet=bool(noise) or secure
    )


def _secure_sum(context: Context, clients: int, threshold: int | None) -> Sum:
    """Imported where it is used only: not every installation has pycryptodome."""
    from hvd_train.sync._secure import SecureSum

    if clients < 2:
        raise UserError(
            "sync.secure: a round of one client has nobody to hide among; start more ranks, or raise fraction"
        )
    threshold = threshold or clients // 2 + 1
    if not 2 <= threshold <= clients:
        raise UserError(
            f"sync.threshold: expected 2 to {clients}, the clients that take part in a sum, got {threshold}"
        )
    return SecureSum(context.comm, threshold)


def _check_privacy(aggregate: str, clip: float | None, noise: float, delta: float, clients: int) -> None:
    if noise and not clip:
        raise UserError("sync.noise needs sync.clip, the norm to which updates are clipped, such as clip: 1.0")
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
