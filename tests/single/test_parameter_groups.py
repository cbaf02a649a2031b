"""`optimizer.groups`: parameters with options of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import torch_optimizers
from hvd_train.config.chosen import chosen
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.config.schema import Config
from hvd_train.errors import UserError
from hvd_train.gradients import groups
from hvd_train.gradients.groups import Group
from hvd_train.gradients.optimizer import Build, ModelOptimizer, builder, entries
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.engines import threads

NO_DECAY, SLOW = Group(["*"], ["bias", "norm"], {"weight_decay": 0.0}), Group(["0.*"], options={"lr": 0.01})


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def config(optimizer: dict[str, Any], **sections: dict[str, Any]) -> Config:
    return body.configuration(optimizer={"momentum": None, **optimizer}, **sections)


def test_parameters_are_in_all_groups_that_they_fit() -> None:
    assert groups.keys(layers(), [NO_DECAY, SLOW]) == {
        "0.weight": (1,), "0.bias": (0, 1), "1.weight": (0,), "1.bias": (0,), "2.weight": (), "2.bias": (0,),
    }  # fmt: skip


def test_of_several_groups_the_last_one_counts() -> None:
    build = Build(
        "SGD", {"lr": 1.0}, [Group(["*"], options={"lr": 0.1, "momentum": 0.9}), Group(["a"], options={"lr": 0.2})]
    )
    assert build.of((0, 1)).options == {"lr": 0.2, "momentum": 0.9}
    assert build.of(()).options == {"lr": 1.0}


def test_kinds_are_found_in_layers_of_others_too() -> None:
    class OwnRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    model = nn.ModuleDict({"a": nn.LSTM(2, 2), "b": OwnRMSNorm(), "unbiased": nn.Linear(2, 2)})
    found = {name: set(kinds) for name, kinds in groups.kinds(model).items()}
    assert found["a.bias_ih_l0"] == {"bias"}
    assert found["b.scale"] == {"norm"}
    assert found["a.weight_ih_l0"] == found["unbiased.weight"] == set()


def test_steps_equal_those_of_torch_with_the_same_groups() -> None:
    model, expected = layers(), layers()
    options = {"lr": 0.1, "weight_decay": 0.5}
    made = ModelOptimizer(model, Build("AdamW", options, [NO_DECAY, SLOW])).torch
    p = dict(expected.named_parameters())
    reference = torch.optim.AdamW(
        [
            {"params": [p["2.weight"]]},
            {"params": [p["1.weight"], p["1.bias"], p["2.bias"]], "weight_decay": 0.0},
            {"params": [p["0.bias"]], "weight_decay": 0.0, "lr": 0.01},
            {"params": [p["0.weight"]], "lr": 0.01},
        ],
        **options,
        fused=True,
    )
    for _ in range(3):
        for of, optimizer in ((model, made), (expected, reference)):
            optimizer.zero_grad()
            of(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, p[name]), name


@pytest.mark.parametrize("name", sorted(set(torch_optimizers.modules()) - {"LBFGS"}))
def test_every_optimizer_takes_groups_of_which_some_are_empty(name: str) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = Build(name, {}, [SLOW, NO_DECAY]).grouped({(): [], (0,): [weight], (0, 1): []})
    weight.grad = torch.ones(3, 3).to_sparse() if name == "SparseAdam" else torch.ones(3, 3)
    optimizer.step()
    assert not torch.equal(weight.detach(), torch.ones(3, 3))
    assert [group["lr"] for group in optimizer.param_groups if group["params"]] == [0.01]


def test_the_schedule_scales_the_rate_of_each_group() -> None:
    sections = {"train": {"steps": 4, "epochs": None}, "schedule": {"name": "linear", "warmup": 0.5}}
    job = body.trainer(
        SingleCommunicator(), config({"lr": 0.1, "groups": [{"match": "last.*", "lr": 0.01}]}, **sections)
    )
    job.run()
    assert [group["lr"] for group in job.optimizer.torch.param_groups] == pytest.approx([0.05, 0.005])


@pytest.mark.parametrize("shard", [False, "auto"])
def test_resumed_is_bitwise_equal(tmp_path: Path, shard: Any) -> None:
    """One group alone has momentum, so the states of parameters differ; another number of ranks goes on."""

    def made(comm: Communicator, steps: int) -> Any:
        optimizer = {"lr": 0.1, "groups": [{"match": ["first.*", "last.weight"], "momentum": 0.9}]}
        train = {"steps": steps, "epochs": None}
        sync = {"shard_optimizer": shard}
        return body.trainer(comm, config(optimizer, train=train, sync=sync, checkpoint={"every": 3}), **around)

    around: dict[str, Any] = {}

    def through(comm: Communicator) -> dict[str, Tensor]:
        job = made(comm, 6)
        job.run()
        return body.parameters(job)

    def again(comm: Communicator) -> dict[str, Tensor]:
        job = made(comm, 6)
        job.restore(checkpoint.load(tmp_path, comm, print))
        assert {name for name, state in job.optimizer.state().items() if "momentum_buffer" in state} == {
            "first.weight", "first.bias", "last.weight",
        }  # fmt: skip
        job.run()
        return body.parameters(job)

    expected = threads.run(2, through)[0]
    around["checkpoints"] = tmp_path / "checkpoints"
    threads.run(2, lambda comm: made(comm, 3).run())
    around.clear()
    for name, value in threads.run(2, again)[0].items():
        assert torch.equal(value, expected[name]), name


def test_state_entries_are_those_of_the_group() -> None:
    build = Build("SGD", {"lr": 0.1}, [Group(["a"], options={"momentum": 0.9})])
    parameters = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found = entries(build, parameters, torch.device("cpu"), {"a": (0,), "b": ()})
    assert found == {"a": {"momentum_buffer"}, "b": set()}


def test_a_parameter_that_is_unfrozen_later_gets_the_options_of_its_group() -> None:
    model = layers()
    model[0].requires_grad_(False)
    made = ModelOptimizer(model, Build("SGD", {"lr": 0.1}, [NO_DECAY, SLOW]))
    model[0].requires_grad_(True)
    made.adopt()
    rates = {made.names[p]: group["lr"] for group in made.torch.param_groups for p in group["params"]}
    assert rates == {"0.weight": 0.01, "0.bias": 0.01} | dict.fromkeys(
        ("1.weight", "1.bias", "2.weight", "2.bias"), 0.1
    )


def test_a_written_option_counts_on_the_ranks_even_if_it_is_torchs_default() -> None:
    """The ranks get the values that differ from defaults, and 0 is the default of SGD's weight decay."""
    written = config({"weight_decay": 0.5, "groups": [{"kind": "bias", "weight_decay": 0.0, "lr": 1}]})
    received = resolve(Document(chosen(written), "ranks"))
    (group,) = builder(received.optimizer, "fp32").groups
    assert (group.kinds, group.options) == (["bias"], {"weight_decay": 0.0, "lr": 1.0})


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            {"groups": [{"match": "frist.*", "lr": 0.1}]},
            "optimizer.groups[0].match: no parameter of the model is called 'frist.*'",
        ),
        (
            {"groups": [{"match": ["last.*", "x"]}]},
            "optimizer.groups[0].match: no parameter of the model is called 'x'",
        ),
        ({"groups": [{"kind": "norm"}]}, "optimizer.groups[0]: no parameter that fits * is of the kind norm"),
        (
            {"groups": [{"match": "last.*", "lr": -1.0}]},
            "SGD rejects this model or these options: Invalid learning rate: -1.0",
        ),
        (
            {"name": "LBFGS", "weight_decay": None, "groups": [{"match": "last.*"}]},
            "optimizer.groups: LBFGS has the same options for all parameters",
        ),
    ],
)
def test_groups_that_fit_nothing_are_refused(optimizer: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        body.trainer(SingleCommunicator(), config(optimizer))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"weightdecay": 0.1}, "optimizer.groups.0.weightdecay: unknown key; did you mean 'weight_decay'?"),
        ({"lr": "fast"}, "optimizer.groups.0.lr: expected a number, got 'fast'"),
        ({"kind": "biass"}, "optimizer.groups.0.kind: expected 'bias' or 'norm' or a list, got 'biass'"),
        ({"match": []}, "optimizer.groups.0.match: expected"),
    ],
)
def test_wrong_options_of_groups_are_refused_without_torch(group: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config({"groups": [group]})
    assert said in str(refused.value)


def test_asynchronous_servers_take_no_groups() -> None:
    def refusal(comm: Communicator) -> str:
        with pytest.raises(UserError) as refused:
            body.trainer(comm, config({"groups": [{"kind": "bias"}]}, sync={"strategy": "async_ps", "fusion_mb": None}))
        return str(refused.value)

    assert all("asynchronous servers update all parameters alike" in said for said in threads.run(2, refusal))
