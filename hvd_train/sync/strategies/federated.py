"""Ranks are clients: in each round a sample of them trains, and their updates are merged."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.objects import broadcast_json
from hvd_train.config.options import (
    Annotated,
    Field,
    Literal,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.clients import options
from hvd_train.sync.clients.confidential import ConfidentialOptimizer, UncoveredBuffers, check_model
from hvd_train.sync.clients.gaussian import clip_
from hvd_train.sync.clients.merges import Merge, PlainSum, PrivateMean, RobustMerge, Sum, WeightedMean
from hvd_train.sync.clients.privacy import NoPrivacy, Privacy, deviation_of
from hvd_train.sync.clients.round_model import RoundModel, add_, update_of
from hvd_train.sync.clients.sample import Sample, SampledClients
from hvd_train.sync.replicas.flat import copy_
from hvd_train.sync.replicas.replica_set import ReplicaSet, refuse_compression
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.view import View


class FederatedProgress(View):
    """How far a run has come: the epochs that have ended, and this rank's samples in the round."""

    def __init__(self, clients: int, local_epochs: int) -> None:
        super().__init__()
        self._clients, self._local_epochs = clients, local_epochs
        self.epochs, self.samples = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "clients": self._clients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"] if "epochs" in state else state["round"] * self._local_epochs

    def rank_state(self) -> dict[str, Tensor]:
        return {"samples": torch.tensor(self.samples)}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self.samples = float(state["samples"])


class FederatedView(View):
    """Evaluations and checkpoints see the model of the last round.

    What else is saved is that of `replicas`. If it is confidential, a checkpoint, which rank 0
    writes, holds nothing of a single client.
    """

    has_model_of_step = False

    def __init__(
        self,
        replicas: ReplicaSet,
        model: RoundModel,
        privacy: Privacy | NoPrivacy,
        *,
        confidential: bool,
        on_agreed: Callable[[], None],
    ) -> None:
        super().__init__(on_agreed)
        self._replicas, self._model, self._privacy = replicas, model, privacy
        self.confidential, self.guarantees_privacy = confidential, isinstance(privacy, Privacy)
        self.unrestored = replicas.unrestored

    @contextmanager
    def agreed(self) -> Iterator[None]:
        self._on_agreed()
        with self._model.shown():
            yield

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        return self._replicas.copies()

    def metrics(self) -> dict[str, float]:
        return self._privacy.metrics()

    def summary(self) -> dict[str, Any]:
        distance = {} if self.confidential else {"drift": self._replicas.distance.average}
        return {"rounds": self._replicas.averages, **distance, **self._privacy.summary()}

    def state_dict(self) -> dict[str, Any]:
        return {**self._replicas.state_dict(), **self._privacy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._privacy.load_state_dict(state)
        self.unrestored += self._privacy.unrestored
        self._replicas.load_state_dict(state)

    def rank_state(self) -> dict[str, Tensor]:
        return {} if self.confidential else self._replicas.rank_state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._replicas.load_rank_state(state)


class Federated(SyncStrategy):
    """Rounds of local epochs: w <- w + merge of the updates w_k - w of a sample of clients.

    FedAvg, McMahan et al., arXiv 1602.05629. An update is of a client's parameters and running
    statistics. Optimizers are reset after every round. A round that the end of the run cuts short
    is merged as it is. Another number of ranks is another number of clients: such a run resumes
    from the last round's model, and is refused with noise. A confidential run that was stopped
    within a round resumes the rest of the round from the last round's model.
    """

    learns_alone = True

    def __init__(
        self,
        context: Context,
        sample: Sample,
        local_epochs: int,
        merge: Merge,
        privacy: Privacy | NoPrivacy,
        *,
        clip: float | None = None,
        confidential: bool = False,
    ) -> None:
        """`clip` is the largest norm of an update."""
        comm = context.comm
        self._local_epochs, self._merge, self._privacy, self._clip = local_epochs, merge, privacy, clip
        self._confidential, self._scale = confidential, OwnMean(comm)
        self._position, self._last = FederatedProgress(comm.size, local_epochs), RoundModel(comm)
        parts = [self._position, self._last]
        self._replicas = ReplicaSet(comm, parts, extend=self._last.extend, measures=not confidential)
        self._clients = SampledClients(comm, sample, local_epochs, self._replicas.distance.reduce)
        check = self._check_buffers
        view = FederatedView(self._replicas, self._last, privacy, confidential=confidential, on_agreed=check)
        super().__init__(context, members=self._clients, gradient_scale=self._scale, view=view)
        refuse_compression(context, "federated")

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if not self._confidential:
            return self._replicas.use(super().optimizer(model, build))
        check_model(model)
        return self._replicas.use(ConfidentialOptimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._last.begin(model)
        self._replicas.start(model)
        self._uncovered = UncoveredBuffers(model, self._last.statistics) if self._confidential else None

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    def on_parameters(self, step: int) -> None:
        self._replicas.step()
        self._position.samples += self._scale.units

    def on_epoch(self, epoch: int) -> None:
        if (epoch + 1) % self._local_epochs == 0:
            self._replicas.average(self._round_)
        self._position.epochs = epoch + 1

    def finish(self) -> bool:
        cut_short = self._replicas.diverged
        if cut_short:
            self._replicas.average(self._round_)
        return cut_short

    def _round_(self) -> None:
        """End a round: w <- w + merge of its clients' updates, on every rank; collective."""
        self._check_buffers()
        clients = self._clients.clients(self._position.epochs)
        now, last = self._last.pairs()
        update = update_of(now, last)
        if self._clip:
            clip_(update, self._clip)
        self._privacy.release()
        samples = self._position.samples if self.comm.rank in clients else 0
        add_(last, self._merge(update, samples, clients).to(update))
        copy_(now, last)
        self._replicas.optimizer.torch.state.clear()
        self._position.samples = 0

    def _check_buffers(self) -> None:
        if self._uncovered:
            self._uncovered.check()


def create(
    context: Context,
    *,
    fraction: Annotated[float, Field(gt=0, le=1), "share of the clients that train in a round, at least one"] = 1.0,
    local_epochs: Annotated[PositiveInt, "epochs of a round"] = 1,
    aggregate: Annotated[
        Literal["mean", "krum", "median", "trimmed_mean"],
        "aggregates the clients' updates; all but mean withstand poisoned updates",
    ] = "mean",
    byzantine: Annotated[NonNegativeInt, "poisoned clients of a round that aggregate withstands"] = 0,
    clip: Annotated[PositiveFloat | None, "largest norm of a client's update"] = None,
    noise: Annotated[
        NonNegativeFloat,
        "differential privacy: standard deviation, in units of clip, of noise in the sum of updates; no rank knows the noise",
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
    options.check_privacy(aggregate, clip, noise, delta, comm.size)
    options.check_secure(aggregate, secure, threshold)
    # With noise the sample must be secret: its seed is not that of the run, which others may know.
    seed = broadcast_json(comm, secrets.randbits(64)) if noise else context.seed
    sample = Sample(comm.size, fraction, seed, poisson=bool(noise))
    options.check_byzantine(aggregate, byzantine, sample.size)
    summands = comm.size if noise else sample.size
    add: Sum = options.secure_sum(context, summands, threshold) if secure else PlainSum(comm)
    merge: Merge = RobustMerge(comm, aggregate, byzantine) if aggregate != "mean" else WeightedMean(add)
    privacy: Privacy | NoPrivacy = NoPrivacy()
    if noise and clip:
        deviation = deviation_of(noise, clip, comm.size)
        if secure:
            options.check_fixed_point(clip, deviation, comm.size)
        merge = PrivateMean(add, comm.size, deviation, fraction * comm.size)
        privacy = Privacy(context, noise, fraction, delta)
    confidential = bool(noise) or secure
    return Federated(context, sample, local_epochs, merge, privacy, clip=clip, confidential=confidential)
