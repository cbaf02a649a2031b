"""Training on perturbed samples keeps what training promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.config.schema import AdversarialSection
from hvd_train.errors import UserError
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.engines import threads

PGD = {"name": "pgd", "epsilon": 0.3, "steps": 3}


def configuration(size: int = 1, adversarial: Any = PGD, **sections: Any) -> Any:
    train = {"steps": 5, "epochs": None, "adversarial": adversarial, **sections.pop("train", {})}
    accumulate = train.get("accumulate", 1)
    return body.configuration(train=train, data={"batch_size": 24 // size // accumulate}, **sections)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"accumulate": 2}, "sync": {"shard_optimizer": "auto"}},
        {"adversarial": {**PGD, "share": 0.5, "norm": "l2"}},
        {"adversarial": {"name": "fgsm", "random_start": True}, "sync": {"shard_optimizer": False}},
        {"optimizer": {"name": "LBFGS", "momentum": None, "weight_decay": None, "lr": 0.5, "max_iter": 2}},
    ],
    ids=["plain", "accumulate", "mixture", "fgsm", "lbfgs"],
)
def test_ranks_equal_one_process(sections: dict[str, Any]) -> None:
    """Random starts and the choice of samples depend on samples and steps, not on ranks."""
    expected = body.trained(SingleCommunicator(), configuration(1, **sections))
    plain = body.trained(SingleCommunicator(), configuration(1, **{**sections, "adversarial": None}))
    assert any(not torch.equal(expected[name], plain[name]) for name in expected)
    for found in threads.run(3, lambda comm: body.trained(comm, configuration(comm.size, **sections))):
        body.assert_close(found, expected)


SYNC: dict[str, dict[str, Any]] = {
    "allreduce": {},
    "local_sgd": {"period": 2},
    "diloco": {"period": 2},
    "gossip": {},
    "parameter_server": {"fusion_mb": None},
    "federated": {"fusion_mb": None},
}


@pytest.mark.parametrize("strategy", SYNC)
def test_every_kind_of_strategy_trains_on_perturbed_samples(strategy: str) -> None:
    sync = {"strategy": strategy, **SYNC[strategy]}
    with_attack, without = (
        threads.run(2, lambda comm, a=a: body.trained(comm, configuration(comm.size, adversarial=a, sync=sync)))
        for a in (PGD, None)
    )
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(with_attack, without, strict=True)]
    assert any(changed)
    assert all(torch.isfinite(p).all() for rank in with_attack for p in rank.values())


def test_a_resumed_run_is_bitwise_equal(tmp_path: Path) -> None:
    def config(steps: int) -> Any:
        return configuration(
            model={"name": "mlp", "hidden": [16], "dropout": 0.3, "target": None},
            train={"steps": steps, "precision": "bf16", "accumulate": 2},
            checkpoint={"every": 4},
            adversarial={**PGD, "share": 0.7},
        )

    comm = SingleCommunicator()
    through = body.trainer(comm, config(7))
    through.run()
    body.trainer(comm, config(4), checkpoints=tmp_path / "checkpoints").run()
    torch.manual_seed(123)
    second = body.trainer(comm, config(7))
    second.restore(checkpoint.load(tmp_path, comm, print))
    second.run()
    for name, value in body.parameters(through).items():
        assert torch.equal(value, body.parameters(second)[name]), name


def test_a_share_of_zero_changes_nothing() -> None:
    plain = body.trained(SingleCommunicator(), configuration(adversarial=None))
    none = body.trained(SingleCommunicator(), configuration(adversarial={**PGD, "share": 0.0}))
    assert all(torch.equal(plain[name], none[name]) for name in plain)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Count(), nn.Linear(8, 3))


class Count(nn.Module):
    """Counts the passes in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.passes.append(self.training)
        return x


def test_perturbations_are_computed_in_evaluation_mode() -> None:
    """Running statistics are those of the training pass alone, one for each micro-batch."""
    config = configuration(
        train={"steps": 2, "accumulate": 2},
        model={"target": "tests.single.test_adversarial_training:normalised"},
    )
    job = body.trainer(SingleCommunicator(), config)
    job.run()
    assert int(job.model.get_submodule("1").num_batches_tracked) == 4
    step = [False] * 2 * PGD["steps"] + [True] * 2
    count = job.model.get_submodule("3")
    assert isinstance(count, Count)
    assert count.passes == step * 2


def test_the_perturbation_increases_the_loss_of_the_step() -> None:
    def first_loss(adversarial: Any) -> float:
        job = body.trainer(SingleCommunicator(), configuration(adversarial=adversarial, train={"steps": 1}))
        job.run()
        return job.step.loss.mean(job.group.steps_with)["loss"]

    clean, weak, strong = (first_loss(a) for a in (None, {**PGD, "epsilon": 0.1}, PGD))
    assert clean < weak < strong


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adversarial": {**PGD, "restarts": 2}}, r"train\.adversarial\.restarts: expected 1 in training"),
        ({"data": "tests.single.test_adversarial_training:tokens"}, r"train\.adversarial: attacks follow gradients"),
    ],
)
def test_what_cannot_be_attacked_is_refused(sections: dict[str, Any], message: str) -> None:
    config = configuration(adversarial=sections.get("adversarial", PGD))
    if "data" in sections:
        config = body.configuration(
            train={"adversarial": PGD},
            data={"target": sections["data"]},
            model={"target": "tests.single.test_adversarial_training:embedding"},
        )
    with pytest.raises(UserError, match=message):
        body.trainer(SingleCommunicator(), config)


def tokens() -> Any:
    from hvd_train.data.base import Dataset, tensor_split
    from hvd_train.data.spec import DataSpec

    x, y = torch.arange(80).reshape(20, 4) % 7, torch.arange(20) % 3
    return Dataset(tensor_split(x[4:], y[4:]), tensor_split(x[:4], y[:4]), DataSpec((4,), 3, "classification"))


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(20, 3))


def test_a_divided_model_is_refused() -> None:
    config = configuration(model={"name": "mlp", "hidden": [8], "target": None}, parallel={"tensor": 2})

    def refused(comm: Communicator) -> None:
        with pytest.raises(UserError, match=r"train\.adversarial: perturbations need the gradient of the whole model"):
            body.trainer(comm, config)

    threads.run(2, refused)


def test_the_members_are_the_attacks_that_need_the_training_loss_alone() -> None:
    assert AdversarialSection.members() == ["fgsm", "pgd"]
    assert set(AdversarialSection.members()) < set(plugins.names("hvd_train.compute.attacks"))
    with pytest.raises(UserError, match=r"train\.adversarial\.name: no 'square' here \(choices: fgsm, pgd\)"):
        configuration(adversarial="square")
