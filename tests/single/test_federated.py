"""Federated rounds on threads; `tests/parallel/test_federated.py` runs the bodies under mpirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build
from hvd_train.sync.clients.sample import Sample
from hvd_train.training.checkpoint import Snapshot
from tests.bodies import federated as body
from tests.bodies import training
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("check", body.MASKED, ids=lambda f: f.__name__)
def test_masked_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def test_every_evaluation_records_epsilon() -> None:
    threads.run(3, body.every_evaluation_records_epsilon)


@pytest.mark.parametrize("check", body.ON_DISK, ids=lambda f: f.__name__)
def test_on_disk_on_threads(check: Any, tmp_path: Path) -> None:
    threads.run(3, lambda comm: check(comm, tmp_path))


REFUSED = {
    "krum on too few clients": ({"aggregate": "krum", "byzantine": 1}, "krum withstands 1 Byzantine.*there are 3"),
    "a sample that is too small": ({"aggregate": "median", "byzantine": 1, "fraction": 0.6}, "median.*there are 2"),
    "a mean that withstands": ({"byzantine": 1}, "sync.byzantine: mean withstands no.*krum, median or trimmed_mean"),
    "noise without a norm": ({"noise": 1.0}, "sync.noise needs sync.clip"),
    "noise that is next to nothing": (
        {"noise": 1e-170, "clip": 1.0},
        "sync.noise: expected 0, or 1e-12 to 1e6.*got 1e-170",
    ),
    "noise that is everything": (
        {"noise": 1e300, "clip": 1.0},
        r"sync.noise: expected 0, or 1e-12 to 1e6.*got 1e\+300",
    ),
    "noise in a median": (
        {"noise": 1.0, "clip": 1.0, "aggregate": "median"},
        "sync.noise.*'median' takes none: choose aggregate: mean, or noise: 0",
    ),
    "a delta that means nothing": ({"noise": 1.0, "clip": 1.0, "delta": 0.5}, "sync.delta: with 3 clients.*got 0.5"),
    "masks and single updates": (
        {"secure": True, "aggregate": "krum"},
        "'krum' needs single updates; choose aggregate: mean or secure: false",
    ),
    "a threshold of nothing": ({"threshold": 2}, "sync.threshold is an option of secure aggregation: add secure: true"),
    "a threshold out of range": ({"secure": True, "threshold": 4}, "sync.threshold: expected 3 to 3, .* got 4"),
    "a threshold that hides nobody": (
        {"secure": True, "threshold": 2},
        "sync.threshold: expected 3 to 3, .* got 2; of two updates each client can compute the other from the sum",
    ),
    "one alone": ({"secure": True, "fraction": 0.3}, "a round of one client hides nobody"),
    "two of three": (
        {"secure": True, "fraction": 0.7},
        "a round of two clients hides nobody.*expected 3 clients or more",
    ),
    "noise too fine for masks": (
        {"secure": True, "noise": 1.0, "clip": 1e-9},
        "sync.clip: with secure: true, noise of deviation 1.2.*e-09 does not fit fixed-point numbers",
    ),
    "noise too large for masks": (
        {"secure": True, "noise": 1.0, "clip": 1e11},
        r"sync.clip: with secure: true.*expected clip \* noise from about .* to",
    ),
    "compression": ({"compression": "topk"}, "sync.compression: federated sends whole parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_at_the_start(name: str) -> None:
    options, text = REFUSED[name]
    with pytest.raises(UserError, match=text):
        threads.run(3, lambda comm: training.trainer(comm, body.configuration(1, **options)))


@pytest.mark.parametrize("options", [{"secure": True}, {"noise": 1.0, "clip": 1.0}])
def test_running_statistics_are_refused_in_confidential_runs(options: dict[str, Any]) -> None:
    config = training.configuration(
        model={"target": "tests.bodies.federated:normed_model"},
        data={"partition": "contiguous"},
        sync={"fusion_mb": None, "strategy": "federated", **options},
    )
    with pytest.raises(UserError, match=r"sync: '1' keeps running statistics.*group or layer normalisation"):
        threads.run(3, lambda comm: training.trainer(comm, config))


def test_two_clients_alone_cannot_be_masked() -> None:
    with pytest.raises(UserError, match=r"a round of two clients hides nobody.*start more ranks"):
        threads.run(2, lambda comm: training.trainer(comm, body.configuration(1, secure=True)))


def test_class_weights_that_count_labels_are_refused_with_noise() -> None:
    config = training.configuration(
        data={"partition": "contiguous"},
        train={"loss": {"name": "cross_entropy", "class_weights": "balanced"}},
        sync={"fusion_mb": None, "strategy": "federated", "noise": 1.0, "clip": 1.0},
    )
    with pytest.raises(UserError, match=r"train.loss.class_weights: 'balanced' counts the labels of all clients"):
        threads.run(2, lambda comm: training.trainer(comm, config))


def test_extra_state_is_refused_where_only_tensors_are_covered() -> None:
    class Counts(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"samples": 3}

        def set_extra_state(self, state: Any) -> None: ...

    def masked(comm: Communicator) -> None:
        strategy = training.trainer(comm, body.configuration(1, secure=True)).strategy
        strategy.optimizer(Counts(2, 2), Build("SGD", {"lr": 0.1}))

    with pytest.raises(UserError, match="sync: '_extra_state' is state beside tensors, which neither noise nor masks"):
        threads.run(3, masked)


def test_complex_parameters_are_refused_where_only_real_numbers_are_covered() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def masked(comm: Communicator) -> None:
        strategy = training.trainer(comm, body.configuration(1, secure=True)).strategy
        strategy.optimizer(Turned(), Build("SGD", {"lr": 0.1}))

    with pytest.raises(UserError, match="sync: 'turn' is complex, and noise and masks cover real numbers only"):
        threads.run(3, masked)


def test_noise_for_clients_whose_samples_change_is_refused() -> None:
    config = training.configuration(sync={"fusion_mb": None, "strategy": "federated", "noise": 1.0, "clip": 1.0})
    with pytest.raises(
        UserError, match=r"data.partition: 'random' assigns samples to other clients.*take by_group, contiguous"
    ):
        threads.run(2, lambda comm: training.trainer(comm, config))


def test_a_checkpoint_for_which_no_epsilon_holds_is_refused() -> None:
    """Checkpoints without noise or of other clients are refused; others are counted on."""
    private = body.configuration(2, noise=1.0, clip=1.0)
    plain = threads.run(3, lambda comm: snapshot(comm, body.configuration(1)))
    noised = threads.run(3, lambda comm: snapshot(comm, body.configuration(1, noise=2.0, clip=1.0)))

    def resumed(comm: Communicator, snapshots: list[Snapshot]) -> Any:
        job = training.trainer(comm, private)
        job.restore(snapshots[comm.rank])
        job.run()
        return job.strategy.view.state_dict()["spent"]

    for size, snapshots in ((3, plain), (2, noised)):
        with pytest.raises(UserError, match="--resume: no epsilon holds"):
            threads.run(size, lambda comm: resumed(comm, snapshots))  # noqa: B023
    assert threads.run(3, lambda comm: resumed(comm, noised))[0] == [[2.0, 1.0, 1], [1.0, 1.0, 1]]


@pytest.mark.parametrize("other", [{"seed": 5}, {"data": {"partition": {"name": "dirichlet", "alpha": 9.0}}}])
def test_clients_whose_samples_change_on_resume_are_refused_with_noise(other: dict[str, Any]) -> None:
    noised = threads.run(2, lambda comm: snapshot(comm, body.configuration(1, noise=1.0, clip=1.0)))
    plain = threads.run(2, lambda comm: snapshot(comm, body.configuration(1)))

    def resumed(comm: Communicator, snapshots: list[Snapshot], **sync: Any) -> None:
        config = body.configuration(2, **sync)
        changed = config.model_dump()
        config.seed = other.get("seed", config.seed)
        if "data" in other:
            config.data.partition.alpha = other["data"]["partition"]["alpha"]  # type: ignore[attr-defined]
        assert changed != config.model_dump()
        training.trainer(comm, config).restore(snapshots[comm.rank])

    threads.run(2, lambda comm: resumed(comm, plain))
    differs = "seed was 0, is 5" if "seed" in other else "data.partition.alpha was 0.3, is 9.0"
    with pytest.raises(UserError, match=f"--resume: no epsilon holds for clients whose samples change: {differs}; "):
        threads.run(2, lambda comm: resumed(comm, noised, noise=1.0, clip=1.0))


def test_rounds_without_noise_after_rounds_with_it_are_warned_of() -> None:
    noised = threads.run(2, lambda comm: snapshot(comm, body.configuration(1, noise=2.0, clip=1.0)))

    def resumed(comm: Communicator) -> list[str]:
        warnings: list[str] = []
        job = training.trainer(comm, body.configuration(2))
        job.restore(noised[comm.rank], warnings.append)
        job.run()
        return warnings

    (text,) = [text for text in threads.run(2, resumed)[0] if "noise" in text]
    assert text.startswith("--resume: sync.noise was set, is 0: no epsilon holds")


def snapshot(comm: Communicator, config: Any) -> Snapshot:
    job = training.trainer(comm, config)
    job.run()
    return job.state.snapshot()


def test_a_round_without_clients_changes_nothing_but_by_noise() -> None:
    """If a Poisson sample is empty, rank 0 takes steps that do not count."""

    def run(comm: Communicator) -> float:
        job = training.trainer(comm, body.configuration(1, noise=1e-9, clip=1.0))
        job.strategy.members.sample = Sample(comm.size, 1e-12, 0, poisson=True)  # type: ignore[attr-defined]
        before = body.flat(job)
        comm.broadcast_(before)
        assert job.strategy.members.share(0) == ((0, 2) if comm.rank == 0 else None)
        job.run()
        assert job.progress.step > 0
        return float((body.flat(job) - before).abs().max())

    assert 0 < max(threads.run(2, run)) < 1e-7


def test_roles_describe_the_clients_of_a_round() -> None:
    def roles(comm: Communicator, **options: Any) -> str:
        return training.trainer(comm, body.configuration(1, **options)).strategy.members.roles()

    assert threads.run(4, lambda comm: roles(comm, fraction=0.5)) == ["4 clients, 2 of them in a round"] * 4
    poisson = {"fraction": 0.5, "noise": 1.0, "clip": 1.0}
    assert "each of them in a round with probability 0.5" in threads.run(4, lambda comm: roles(comm, **poisson))[0]


@pytest.mark.parametrize("partition", ["contiguous", "dirichlet"])
def test_digits_are_learned_nearly_as_well_as_with_allreduce(partition: str) -> None:
    """Four clients, ten epochs: within 2 points for equal clients, within 5 for unequal ones."""

    def accuracy(comm: Communicator, strategy: str) -> float:
        config = training.configuration(
            model={"name": "mlp", "hidden": [64], "target": None},
            data={"name": "digits", "target": None, "batch_size": 32, "partition": partition},
            optimizer={"weight_decay": None},
            train={"epochs": 10, "precision": "fp32", "eval_every": 1000},
            checkpoint={"every": 1000},
            sync={"fusion_mb": None, "strategy": strategy},
        )
        job = training.trainer(comm, config)
        job.run()
        return job.evaluation.metrics["accuracy"]

    ours, theirs = (threads.run(4, lambda comm: accuracy(comm, s))[0] for s in ("federated", "allreduce"))  # noqa: B023
    assert ours > theirs - (0.02 if partition == "contiguous" else 0.05)
    assert ours > 0.9
