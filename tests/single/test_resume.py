"""Resuming with another configuration: the table, real runs on threads, files on disk."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.monitor.base import Record, Sink
from hvd_train.state import checkpoint_folder, generators
from hvd_train.sync.replicas.replica_set import ReplicaSet
from hvd_train.sync.servers.asynchronous import AsynchronousGroup
from hvd_train.sync.strategies.federated import FederatedView
from hvd_train.training import checkpoint, resume
from hvd_train.training.loop import Trainer
from tests.bodies import training as body
from tests.engines import threads

ROOT = Path(__file__).parents[2]
ALONE = SingleCommunicator()

TABLE: list[tuple[str, Any, Any, set[str]]] = [
    ("train.precision", "fp32", "bf16", set()),
    ("train.precision", "fp32", "fp64", set()),
    ("train.precision", "fp32", "fp16", {"scaling"}),
    ("train.precision", "fp16", "fp64", {"scaling"}),
    ("optimizer.name", "SGD", "AdamW", {"optimizer"}),
    ("optimizer.name", "Adam", "AdamW", set()),
    ("optimizer.momentum", 0.9, 0.5, set()),
    ("optimizer.momentum", 0.9, 0, set()),
    ("optimizer.momentum", 0, 0.9, {"optimizer"}),
    ("optimizer.amsgrad", False, True, {"optimizer"}),
    ("optimizer.amsgrad", True, False, set()),
    ("optimizer.centered", False, True, {"optimizer"}),
    ("optimizer.history_size", 10, 20, {"optimizer"}),
    ("optimizer.lr", 0.1, 0.2, set()),
    ("optimizer.weight_decay", 0.1, 0, set()),
    ("trained.elements", None, 40, set()),
    ("trained.elements", 20, 40, {"optimizer"}),
    ("sync.strategy", "allreduce", "diloco", {"strategy", "replicas", "residuals"}),
    ("sync.target", "a:create", "b:create", {"strategy", "replicas", "residuals"}),
    ("sync.mode", "gradients", "parameters", {"strategy", "replicas"}),
    ("sync.backup_workers", 0, 1, {"strategy", "replicas"}),
    ("sync.backup_workers", 1, 2, set()),
    ("sync.push_sum", False, True, {"replicas"}),
    ("sync.fraction", 1.0, 0.5, {"replicas"}),
    ("sync.local_epochs", 1, 2, {"replicas"}),
    ("sync.period", 4, 8, set()),
    ("sync.shard_optimizer", "auto", False, set()),
    ("sync.compression.name", "none", "topk", {"residuals"}),
    ("sync.compression.target", "a:create", "b:create", {"residuals"}),
    ("sync.compression.rank", 1, 2, {"residuals"}),
    ("sync.compression.ratio", 0.1, 0.2, set()),
    ("ranks", 2, 3, {"replicas", "residuals", "generators", "statistics", "speeds", "experience"}),
    ("parallel.pipeline", 1, 2, {"replicas", "residuals", "generators", "statistics", "speeds", "experience"}),
    ("parallel.tensor", 1, 2, {"replicas", "residuals", "generators", "statistics", "speeds", "experience"}),
    ("data.batch_size", 16, 32, set()),
    ("train.accumulate", 1, 2, set()),
    ("data.samples", 100, 90, {"epoch"}),
    ("data.labels", "a", "b", {"epoch"}),
    ("data.fold.index", 0, 1, {"epoch"}),
    ("data.partition.name", "random", "contiguous", {"epoch", "speeds"}),
    ("data.partition.alpha", 0.5, 1.0, {"epoch", "speeds"}),
    ("data.env", "CartPole-v1", "Acrobot-v1", {"epoch", "experience"}),
    ("data.envs", 8, 4, {"epoch", "experience"}),
    ("data.steps", 32, 16, {"epoch", "experience"}),
    ("agent.name", "ppo", "a2c", {"epoch", "experience"}),
    ("agent.buffer", 1000, 500, {"epoch", "experience"}),
    ("data.wrappers", [], ["FlattenObservation"], {"epoch", "experience"}),
    ("agent.target", "a:create", "b:create", {"epoch", "experience"}),
    ("agent.replayed", 0, 3, {"epoch", "experience"}),
    ("agent.gamma", 0.99, 0.9, set()),
    ("seed", 0, 1, {"generators", "epoch"}),
    ("train.early_stop.metric", "loss", "accuracy", {"best"}),
    ("train.early_stop.mode", None, "min", {"best"}),
    ("schedule.name", "constant", "cosine", set()),
    ("train.epochs", 3, 5, set()),
    ("model.hidden", [32], [64], set()),
]


@pytest.mark.parametrize(("name", "was", "now", "reset"), TABLE)
def test_the_table(name: str, was: Any, now: Any, reset: set[str]) -> None:
    verdict = resume.compare({name: was, "other": 1}, {name: now, "new": 2})
    assert verdict.reset == reset
    assert all(text.startswith(f"{name} was ") for text in verdict.warnings)
    assert bool(verdict.warnings) or not reset
    assert resume.compare({name: was}, {name: was}) == resume.Compatibility(frozenset(), ())
    assert resume.compare({}, {name: now}) == resume.Compatibility(frozenset(), ())


def test_a_warning_names_both_values_and_the_effect_on_each_part() -> None:
    (text,) = resume.compare({"optimizer.name": "SGD"}, {"optimizer.name": "AdamW"}).warnings
    assert text == "optimizer.name was SGD, is AdamW: the optimizer's state is reset"
    converted, reset = resume.compare({"train.precision": "fp64"}, {"train.precision": "fp16"}).warnings[::-1]
    assert converted.endswith("parameters, buffers and the optimizer's state are converted")
    assert reset.endswith("the loss scale is reset")


def test_every_rule_is_documented_and_in_the_table_above() -> None:
    page = (ROOT / "docs" / "resuming.md").read_text()
    rows = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}
    assert {rule.name for rule in resume.RULES} <= rows
    tried = {name for name, _, _, _ in TABLE}
    assert {rule.name for rule in resume.RULES} - tried == {"data.partition.*", "data.fold.*"}


def went_on(
    folder: Path, before: Any, after: Any, ranks: tuple[int, int] = (2, 2), steps: tuple[int, int] = (5, 8)
) -> tuple[list[str], list[Trainer], list[Trainer]]:
    """Return the warnings of rank 0, and the trainers of a run and of one resumed from it."""

    def first(comm: Communicator) -> Trainer:
        job = body.trainer(comm, before(steps[0]), checkpoints=folder / "checkpoints")
        if isinstance(job.strategy.view, ReplicaSet | FederatedView):  # whose ranks are then apart, as inside a round
            job.strategy.finish = lambda: None  # type: ignore[method-assign]
        job.run()
        return job

    warnings: list[str] = []

    def then(comm: Communicator) -> Trainer:
        job = body.trainer(comm, after(steps[1]))
        job.restore(checkpoint.load(folder, comm, pytest.fail), warnings.append)
        job.run()
        job.remembered = {} if isinstance(job.strategy.members, AsynchronousGroup) else job.optimizer.state()  # type: ignore[attr-defined]
        return job

    return warnings, threads.run(ranks[0], first), threads.run(ranks[1], then)


def configured(**sections: Any) -> Callable[[int], Any]:
    train = sections.pop("train", {})
    optimizer = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": None, **sections.pop("optimizer", {})}
    return lambda steps: body.configuration(
        train={"precision": "fp32", **train, "steps": steps, "epochs": None}, optimizer=optimizer, **sections
    )


PRECISIONS = ["fp32", "bf16", "fp16", "fp64"]


@pytest.mark.parametrize("after", PRECISIONS)
@pytest.mark.parametrize("before", PRECISIONS)
@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd"])
def test_precisions(strategy: str, before: str, after: str, tmp_path: Path) -> None:
    def config(precision: str) -> Callable[[int], Any]:
        sync = {"strategy": strategy, "fusion_mb": None}
        return configured(train={"precision": precision}, sync=sync, optimizer={"name": "AdamW", "momentum": None})

    warnings, _, then = went_on(tmp_path, config(before), config(after))
    wide, scaled = "fp64" in (before, after), "fp16" in (before, after)
    assert len(warnings) == (0 if before == after else wide + scaled), warnings
    for job in then:
        assert job.progress.step == 8
        assert all(p.dtype == job.precision.dtype for p in job.model.parameters())
        states = [v for s in job.remembered.values() for k, v in s.items() if k != "step"]
        assert states
        assert all(v.dtype == job.precision.dtype for v in states)
        assert {float(s["step"]) for s in job.remembered.values()} <= {8.0, 7.0, 6.0}
    if before == after == "fp16":
        assert then[0].precision.scaler._growth_tracker.item() > 5  # type: ignore[union-attr]


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": None},
    "momentum": {},
    "adam": {"name": "Adam", "momentum": None},
    "adamw": {"name": "AdamW", "momentum": None},
    "amsgrad": {"name": "AdamW", "momentum": None, "amsgrad": True},
    "adafactor": {"name": "Adafactor", "momentum": None},
    "rmsprop": {"name": "RMSprop", "momentum": None},
    "centered": {"name": "RMSprop", "momentum": 0.5, "centered": True},
    "lbfgs": {"name": "LBFGS", "momentum": None, "max_iter": 3, "history_size": 4},
    "lbfgs, short": {"name": "LBFGS", "momentum": None, "max_iter": 3, "history_size": 1},
    "muon": {"name": "Muon", "momentum": None},
    "rprop": {"name": "Rprop", "momentum": None},
}
KEPT = {
    ("momentum", "sgd"),
    ("adam", "adamw"),
    ("adamw", "adam"),
    ("amsgrad", "adam"),
    ("amsgrad", "adamw"),
    ("centered", "rmsprop"),
}


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 3, bias=False))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (a, b)
        for a in OPTIMIZERS
        for b in OPTIMIZERS
        if a == b or (a, b) in KEPT or "adamw" in (a, b) or "momentum" in (a, b)
    ]
    + [("lbfgs", "lbfgs, short"), ("rmsprop", "centered"), ("adamw", "amsgrad"), ("muon", "adafactor")],
)
def test_optimizers(before: str, after: str, tmp_path: Path) -> None:
    def config(name: str) -> Callable[[int], Any]:
        return configured(model={"target": "tests.single.test_resume:matrices"}, optimizer=OPTIMIZERS[name])

    warnings, _, then = went_on(tmp_path, config(before), config(after), ranks=(1, 1), steps=(3, 4))
    kept = before == after or (before, after) in KEPT
    assert [text for text in warnings if "is reset" in text] == warnings
    assert bool(warnings) != kept, warnings
    assert then[0].progress.step == 4
    entries = {name: set(values) for name, values in then[0].remembered.items()}
    steps = [int(s["step"]) for s in then[0].remembered.values() if "step" in s]
    assert set(steps) <= {4 if kept else 1}
    if before != after and "lbfgs" not in after:
        fresh = threads.run(1, lambda comm: _entries_after(comm, config(after)(1)))[0]
        assert entries == fresh


def _entries_after(comm: Communicator, config: Any) -> dict[str, set[str]]:
    job = body.trainer(comm, config)
    job.run()
    return {name: set(values) for name, values in job.optimizer.state().items()}


@pytest.mark.parametrize(
    "strategy", ["local_sgd", "parameter_server", "async_ps", "async_gossip", "federated", "gossip"]
)
@pytest.mark.parametrize(("before", "after"), [("momentum", "adamw"), ("adamw", "amsgrad"), ("adamw", "sgd")])
def test_optimizers_of_strategies_that_keep_their_state_elsewhere(
    strategy: str, before: str, after: str, tmp_path: Path
) -> None:
    def config(name: str) -> Callable[[int], Any]:
        return configured(sync={"strategy": strategy, "fusion_mb": None}, optimizer=OPTIMIZERS[name])

    warnings, _, then = went_on(tmp_path, config(before), config(after))
    assert [("is reset" in text) for text in warnings] == [True]
    assert then[0].progress.step == 8


COMPRESSION: dict[str, Any] = {
    "none": None,
    "fp16": {"compression": "fp16"},
    "int8": {"compression": "int8"},
    "topk": {"compression": {"name": "topk", "ratio": 0.3}},
    "topk, more": {"compression": {"name": "topk", "ratio": 0.6}},
    "powersgd": {"compression": {"name": "powersgd", "rank": 1}},
    "powersgd, rank 2": {"compression": {"name": "powersgd", "rank": 2}},
}


@pytest.mark.parametrize(
    ("strategy", "before", "after"),
    [("local_sgd", a, b) for a in COMPRESSION for b in COMPRESSION]
    + [
        (s, a, b)
        for s in ("allreduce", "diloco")
        for a, b in (("none", "topk"), ("topk", "none"), ("topk", "topk"), ("topk", "int8"))
    ],
)
def test_compression(strategy: str, before: str, after: str, tmp_path: Path) -> None:
    """Replicas are kept; only residuals may be reset."""

    def config(name: str) -> Callable[[int], Any]:
        apart = {"shard_optimizer": False} if strategy == "allreduce" else {"period": 4}
        return configured(sync={"strategy": strategy, "fusion_mb": 1, **apart, **(COMPRESSION[name] or {})})

    other = before.split(",")[0] != after.split(",")[0] or {before, after} == {"powersgd", "powersgd, rank 2"}

    def first(comm: Communicator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        job = body.trainer(comm, config(before)(6), checkpoints=tmp_path / "checkpoints")
        job.strategy.finish = lambda: None  # type: ignore[method-assign]
        job.run()
        return body.parameters(job), {n: t.clone() for n, t in job.strategy.view.rank_state().items()}

    def then(comm: Communicator) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
        warnings: list[str] = []
        job = body.trainer(comm, config(after)(9))
        job.restore(checkpoint.load(tmp_path, comm, pytest.fail), warnings.append)
        start: Any = job.strategy.start
        seen: list[Any] = []

        def started(model: nn.Module) -> None:
            start(model)
            seen.extend([body.parameters(job), {n: t.clone() for n, t in job.strategy.view.rank_state().items()}])

        job.strategy.start = started  # type: ignore[method-assign]
        job.run()
        assert job.progress.step == 9
        return warnings, seen[0], seen[1]

    of_first, of_then = threads.run(2, first), threads.run(2, then)
    assert len(of_then[0][0]) == other, of_then[0][0]
    assert not of_then[1][0]
    for (parameters, own), (_, restored, after_start) in zip(of_first, of_then, strict=True):
        assert all(torch.equal(parameters[n], restored[n]) for n in parameters)
        held = {n: t for n, t in after_start.items() if n.startswith("reducer.")}
        kept = {n for n, t in held.items() if n in own and torch.equal(own[n], t)}
        assert (kept == set(held)) or other
        residuals = [t for n, t in held.items() if n.endswith("residual")]
        assert all(bool(t.any()) != other for t in residuals)


STRATEGIES: dict[str, dict[str, Any]] = {
    "allreduce": {"strategy": "allreduce"},
    "adasum": {"strategy": "allreduce", "op": "adasum"},
    "local_sgd": {"strategy": "local_sgd", "period": 4},
    "diloco": {"strategy": "diloco", "period": 4},
    "adaptive": {"strategy": "adaptive"},
    "gossip": {"strategy": "gossip"},
    "push-sum": {"strategy": "gossip", "push_sum": True},
    "federated": {"strategy": "federated"},
    "rounds of two": {"strategy": "federated", "local_epochs": 2},
    "independent": {"strategy": "independent"},
    "servers": {"strategy": "parameter_server"},
    "servers of parameters": {"strategy": "parameter_server", "mode": "parameters"},
    "backup": {"strategy": "parameter_server", "backup_workers": 1},
    "async_ps": {"strategy": "async_ps"},
    "ssp": {"strategy": "ssp"},
    "async_gossip": {"strategy": "async_gossip"},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pair
        for name, follows in zip(STRATEGIES, [*list(STRATEGIES)[1:], "allreduce"], strict=True)
        for pair in dict.fromkeys([(name, name), (name, follows), (name, "local_sgd"), ("allreduce", name)])
    ],
)
def test_strategies(before: str, after: str, tmp_path: Path) -> None:
    def config(name: str) -> Callable[[int], Any]:
        return configured(sync={"fusion_mb": None, **STRATEGIES[name]}, optimizer={"name": "AdamW", "momentum": None})

    warnings, _, then = went_on(tmp_path, config(before), config(after))
    silent = {"allreduce", "adasum"}
    assert bool(warnings) == (before != after and {before, after} != silent), warnings
    assert all(re.match(r"--resume: sync\.\w+ was .*, is ", text) for text in warnings)
    assert then[0].progress.step >= (6 if after == "backup" else 8)  # it ends with the first who are enough
    assert all(bool(p.isfinite().all()) for p in then[0].model.parameters())


COUNTED, WEIGHED = ({"name": "target", "target": f"tests.single.test_resume:{name}"} for name in ("counted", "weighed"))


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"hidden": [16]}, {"hidden": [8]}, r"'1.bias' is of shape \(16,\) there and of shape \(8,\) here"),
        ({"hidden": [16]}, {"hidden": [16, 16]}, r"'4.bias' is of shape \(3,\) there and of shape \(16,\) here"),
        ({"hidden": [16, 16]}, {"hidden": [16]}, r"'4.bias' is of shape \(16,\) there and of shape \(3,\) here"),
        ({}, {"name": "linear"}, r"'1.bias' is of shape \(128,\) there and of shape \(3,\) here"),
        ({"name": "linear"}, COUNTED, r"'1.bias' is of shape \(3,\) there and missing here"),
        (COUNTED, WEIGHED, r"'seen' is int64 there and float(32|64) here"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_another_model_is_refused_with_its_first_difference(
    there: Any, here: Any, said: str, precision: str, tmp_path: Path
) -> None:
    def config(model: dict[str, Any], precision: str) -> Callable[[int], Any]:
        return configured(model={"name": "mlp", "target": None, **model}, train={"precision": precision})

    went_on(tmp_path, config(there, "fp32"), config(there, precision))
    with pytest.raises(UserError, match=r"--resume: .*step-00000005 is of another model: ") as refusal:
        went_on(tmp_path, config(there, "fp32"), config(here, precision))
    assert re.search(said, str(refusal.value)), refusal.value


class Counted(nn.Linear):
    def __init__(self, seen: Tensor) -> None:
        super().__init__(6, 3)
        self.register_buffer("seen", seen)


def counted() -> nn.Module:
    return Counted(torch.tensor(0))


def weighed() -> nn.Module:
    return Counted(torch.tensor(0.0))


def data(name: str) -> dict[str, Any]:
    return {"data": {"target": f"tests.single.test_resume:{name}"}}


def fewer() -> Dataset:
    return body.classification(150)


def relabelled() -> Dataset:
    made = body.classification()
    made.train.labels[:] = made.train.labels.flip(0)
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (data("fewer"), r"data\.samples was 203, is 150: the current epoch is reset"),
        (data("relabelled"), r"data\.labels was \w{12}\.\.\., is .* the current epoch is reset"),
        (
            {"data": {"partition": "contiguous"}},
            r"data\.partition\.name was random, is contiguous: the measured speeds of ranks and",
        ),
        ({"seed": 3}, r"seed was 0, is 3: each rank's random generators and the current epoch are reset"),
        ({"data": {"batch_size": 8}}, r"data\.batch_size was 16, is 8: the current epoch is converted"),
        ({"train": {"accumulate": 2}}, r"train\.accumulate was 1, is 2: the current epoch is converted"),
    ],
)
@pytest.mark.parametrize("at_the_end", [False, True])
def test_other_data(change: dict[str, Any], said: str, at_the_end: bool, tmp_path: Path) -> None:
    """An epoch has 7 steps. Only the current epoch is reset, never one that has ended."""
    steps = 7 if at_the_end else 5

    def then(steps: int) -> Any:
        made = configured(**{k: v for k, v in change.items() if k != "seed"})(steps)
        return made.model_copy(update={"seed": change["seed"]}) if "seed" in change else made

    went_on(tmp_path, configured(), configured(), steps=(steps, steps))
    seen: list[tuple[int, int]] = []

    def resumed(comm: Communicator) -> None:
        warnings: list[str] = []
        job = body.trainer(comm, then(20))
        job.restore(checkpoint.load(tmp_path, comm, pytest.fail), warnings.append)
        if comm.rank == 0:
            seen.append((job.progress.epoch, job.progress.samples_in_epoch))
            assert any(re.search(said, text) for text in warnings), warnings
        job.run()

    threads.run(2, resumed)
    converted = "converted" in said
    assert seen == [(1, 0) if at_the_end else (0, 5 * 32 if converted else 0)]


def test_the_state_of_an_unfrozen_parameter_is_reset_and_others_are_kept(tmp_path: Path) -> None:
    def config(model: str) -> Callable[[int], Any]:
        return configured(model={"target": f"tests.single.test_resume:{model}"}, optimizer=OPTIMIZERS["adamw"])

    warnings, _, then = went_on(tmp_path, config("half_frozen"), config("matrices"), steps=(5, 8))
    assert warnings == ["--resume: '0.weight' was frozen, is trained: its optimizer state is reset"]
    assert [int(then[0].remembered[name]["step"]) for name in ("0.weight", "2.weight")] == [3, 8]  # type: ignore[attr-defined]
    again = tmp_path / "again"
    warnings, _, then = went_on(again, config("matrices"), config("half_frozen"))
    assert (warnings, then[0].progress.step) == ([], 8)


@pytest.mark.parametrize("strategy", ["async_gossip", "async_ps", "parameter_server", "local_sgd"])
def test_a_parameter_that_is_frozen_now(strategy: str, tmp_path: Path) -> None:
    def config(model: str) -> Callable[[int], Any]:
        target = {"target": f"tests.single.test_resume:{model}"}
        return configured(model=target, optimizer=OPTIMIZERS["adamw"], sync={"strategy": strategy, "fusion_mb": None})

    warnings, _, then = went_on(tmp_path, config("matrices"), config("half_frozen"))
    assert (warnings, then[0].progress.step) == ([], 8)


def half_frozen() -> nn.Module:
    model = matrices()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


def test_lbfgs_is_reset_if_it_trains_other_parameters(tmp_path: Path) -> None:
    def config(model: str) -> Callable[[int], Any]:
        return configured(model={"target": f"tests.single.test_resume:{model}"}, optimizer=OPTIMIZERS["lbfgs"])

    warnings, _, then = went_on(tmp_path, config("matrices"), config("half_frozen"), ranks=(1, 1))
    assert warnings == ["--resume: trained.elements was 108, is 36: the optimizer's state is reset"]
    assert then[0].progress.step == 8


def test_whether_the_optimizer_was_sharded_makes_no_difference(tmp_path: Path) -> None:
    def config(shard: bool) -> Callable[[int], Any]:
        return configured(sync={"shard_optimizer": shard}, optimizer=OPTIMIZERS["adamw"])

    warnings, _, then = went_on(tmp_path, config(True), config(False))
    assert warnings == []
    expected = threads.run(2, lambda comm: body.trained(comm, config(False)(8)))[0]
    body.assert_close(body.parameters(then[0]), expected, 1e-5)


def test_other_buckets_are_warned_of(tmp_path: Path) -> None:
    def config(mib: float) -> Callable[[int], Any]:
        return configured(
            sync={"compression": {"name": "topk", "ratio": 0.3}, "fusion_mb": mib, "shard_optimizer": False}
        )

    warnings, _, _ = went_on(tmp_path, config(1), config(0))
    assert warnings == ["--resume: gradients are sent in other buckets than before: the state of compression is reset"]


@pytest.mark.parametrize("ranks", [(2, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd", "async_ps"])
def test_another_number_of_ranks_is_warned_of(strategy: str, ranks: tuple[int, int], tmp_path: Path) -> None:
    config = configured(sync={"strategy": strategy, "fusion_mb": None})
    warnings, _, then = went_on(tmp_path, config, config, ranks)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"--resume: ranks was {ranks[0]}, is {ranks[1]}: each rank's own replica, ")
    assert then[0].progress.step == 8


def of_format_1(folder: Path) -> None:
    """Turn the newest checkpoint in `folder` into one of format 1."""
    newest = checkpoint_folder.folders(folder / "checkpoints")[0]
    state = json.loads((newest / "state.json").read_text())
    facts = state.pop("facts")
    del state["format"], state["progress"]["seconds"], state["progress"]["bytes_sent"]
    state["layout"] = [facts["ranks"], facts["parallel.pipeline"], facts["parallel.tensor"]]
    state["strategy_name"] = facts["sync.strategy"]
    parts = {"state.json": json.dumps(state).encode()}
    for file in newest.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        old = {
            name.replace("strategy.reducer.", "strategy."): t for name, t in tensors.items() if ".gaussian" not in name
        }
        parts[file.name] = safetensors.torch.save(old)
    checkpoint.write(newest, parts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"train": {"precision": "fp16"}}, ["train.precision was fp32, is fp16"]),
        (
            {"train": {"precision": "fp64"}},
            ["train.precision was fp32, is fp64", "gradients are sent in other buckets"],
        ),
        ({"sync": {"strategy": "local_sgd"}}, ["sync.strategy was allreduce, is local_sgd"]),
        ({"optimizer": {"amsgrad": True}}, ["the checkpoint has no 'max_exp_avg_sq' of '"]),
        ({"optimizer": {"name": "Adafactor"}}, ["the checkpoint has no '"]),
        ({"sync": {"compression": "powersgd"}}, ["gradients are sent in other buckets"]),
    ],
)
def test_a_checkpoint_of_format_1_loads(change: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "optimizer": {"name": "AdamW", "momentum": None},
        "sync": {"shard_optimizer": False, "compression": {"name": "topk", "ratio": 0.3}},
    }
    if "strategy" in change.get("sync", {}):
        base["sync"] = {}
    config = lambda: configured(**{k: dict(v) for k, v in base.items()})  # noqa: E731
    both = {name: {**base.get(name, {}), **change.get(name, {})} for name in {*base, *change}}

    def first(comm: Communicator) -> None:
        body.trainer(comm, config()(5), checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> tuple[list[str], dict[str, Tensor]]:
        warnings: list[str] = []
        job = body.trainer(comm, configured(**both)(8))
        job.restore(checkpoint.load(tmp_path, comm, pytest.fail), warnings.append)
        job.run()
        return warnings, body.parameters(job)

    threads.run(2, first)
    of_format_1(tmp_path)
    warnings, parameters = threads.run(2, then)[0]
    assert len(warnings) == len(said), warnings
    assert all(part in text for part, text in zip(said, warnings, strict=True))
    if not change:
        expected = threads.run(2, lambda comm: body.trained(comm, config()(8)))[0]
        assert all(torch.equal(expected[name], p) for name, p in parameters.items())


def forged(folder: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the newest checkpoint and its sums, which no check of sums can find."""
    newest = checkpoint_folder.folders(folder / "checkpoints")[0]
    parts = checkpoint.read(newest)
    change(parts)
    for file in newest.iterdir():
        file.unlink()
    for name, content in parts.items():
        (newest / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    (newest / "manifest.json").write_text(json.dumps(sums))


def _edited(key: str, value: Any) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        state = json.loads(parts["state.json"])
        if value is None:
            del state[key]
        else:
            state[key] = value
        parts["state.json"] = json.dumps(state).encode()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts.update({"state.json": b"[1, 2]"}), "state.json: expected an object, got list"),
        (lambda parts: parts.update({"state.json": b"{"}), "state.json"),
        (lambda parts: parts.update({"model.safetensors": parts["model.safetensors"][:40]}), "model.safetensors"),
        (lambda parts: parts.update({"rank-0.safetensors": b""}), "rank-0.safetensors"),
        (lambda parts: parts.pop("optimizer.safetensors"), "optimizer.safetensors is missing"),
        (_edited("format", 99), "state.json has format 99, and this ddl reads formats up to 2"),
        (_edited("format", "x"), "state.json: expected a number as its format"),
        (_edited("progress", None), "'progress' is missing"),
        (_edited("progress", [1]), "step-00000005: unexpected contents"),
        (_edited("progress", {"step": "seven"}), "step-00000005: unexpected contents"),
        (_edited("optimizer", None), "'optimizer' is missing"),
        (_edited("optimizer", {"dict": [["w", {"tensor": "gone"}]]}), "is missing"),
        (_edited("facts", 7), "step-00000005: unexpected contents"),
        (_edited("facts", None), "step-00000005"),
        (_edited("strategy", None), "'strategy' is missing"),
        (_edited("scaler", {"dict": [3]}), "step-00000005: unexpected contents"),
    ],
)
def test_contents_that_no_run_writes_are_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    body.trainer(ALONE, configured()(5), checkpoints=tmp_path / "checkpoints").run()
    forged(tmp_path, change)
    told: list[str] = []
    job = body.trainer(ALONE, configured()(8))
    with pytest.raises(UserError) as refusal:
        job.restore(checkpoint.load(tmp_path, ALONE, told.append), told.append)
    assert any(said in text for text in [*told, str(refusal.value)]), (told, refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def branch(folder: Path, *, keep: int = 3, steps: int = 30, every: int = 10) -> Any:
    def config(steps: int) -> Any:
        settings = {"precision": "fp32", "steps": steps, "epochs": None}
        return body.configuration(train=settings, checkpoint={"every": every, "keep": keep})

    body.trainer(ALONE, config(steps), checkpoints=folder / "checkpoints").run()
    return config


def resumed(folder: Path, source: Path, config: Any) -> list[str]:
    told: list[str] = []
    job = body.trainer(ALONE, config, checkpoints=folder / "checkpoints")
    job.restore(checkpoint.load(source, ALONE, told.append), told.append)
    job.run()
    return told


def steps(folder: Path) -> list[int]:
    return [int(f.name[5:]) for f in checkpoint_folder.folders(folder)]


def test_checkpoints_of_another_branch_are_moved_away(tmp_path: Path) -> None:
    config, kept = branch(tmp_path), tmp_path / "checkpoints"
    (kept / ".step-00000040.draft").mkdir()
    told = resumed(tmp_path, kept / "step-00000010", config(15))
    assert len(told) == 1
    assert "step-00000030, step-00000020 moved to" in told[0]
    assert steps(kept) == [15, 10]
    assert steps(kept / "abandoned-1") == [30, 20]
    assert not list(kept.glob(".*"))
    assert resumed(tmp_path, tmp_path, config(16)) == []
    assert steps(kept) == [16, 15, 10]
    resumed(tmp_path, kept / "abandoned-1" / "step-00000020", config(21))
    assert steps(kept) == [21]
    assert steps(kept / "abandoned-2") == [16, 15, 10]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_never_pushes_out_a_good_one(keep: int, tmp_path: Path) -> None:
    config, kept = branch(tmp_path, keep=3), tmp_path / "checkpoints"
    (kept / "step-00000030" / "model.safetensors").write_bytes(b"")
    (kept / "step-00000010" / "state.json").write_bytes(b"{}")
    short = config(25).model_copy(update={"checkpoint": config(1).checkpoint.model_copy(update={"keep": keep})})
    told = resumed(tmp_path, tmp_path, short)
    assert steps(kept) == [25, 20][:keep]
    assert sorted(steps(kept / "abandoned-1")) == [10, 30]
    assert [text.endswith(": damaged") for text in told] == [False, False, True]
    assert checkpoint.load(tmp_path, ALONE, pytest.fail).state["progress"]["step"] == 25


def test_a_rewritten_checkpoint_survives_an_interruption_at_any_point(tmp_path: Path, monkeypatch: Any) -> None:
    """A complete checkpoint of the step exists between any two changes of the disk."""
    folder = tmp_path / "checkpoints" / "step-00000001"
    for cut in range(1, 14):
        value = iter(range(1, 100))
        snapshot = checkpoint.Snapshot({"w": torch.ones(2)}, {}, {"cut": cut}, {"r": torch.ones(1)})
        checkpoint.save(snapshot, folder.parent, 1, 1, ALONE)

        def counted(real: Any, value: Any = value, cut: int = cut) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(value) == cut:
                    raise KeyboardInterrupt
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr("shutil.rmtree", counted(checkpoint.shutil.rmtree))
            patch.setattr("os.fsync", counted(checkpoint.os.fsync))
            try:
                checkpoint.save(snapshot, folder.parent, 1, 1, ALONE)
            except KeyboardInterrupt:
                assert checkpoint.load(tmp_path, ALONE, pytest.fail).state == {"cut": cut}
        checkpoint.abandon_others(folder.parent, folder)
        assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_draws_after_resuming_are_those_of_an_uninterrupted_run() -> None:
    """For each generator after an odd number of Gaussian numbers, with the second of a pair left."""

    def draws() -> list[float]:
        normal = [
            random.gauss(0, 1),
            float(np.random.normal()),
            float(torch.randn(())),
            float(torch.randn((), dtype=torch.float64)),
        ]
        return [*normal, random.random(), float(np.random.rand()), float(torch.rand(()))]

    for odd in range(3):
        for _ in range(odd):
            draws()
        random.gauss(0, 1)
        saved = {name: t.clone() for name, t in generators.state().items()}
        expected = [draws() for _ in range(3)]
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        draws()
        generators.load(saved)
        assert [draws() for _ in range(3)] == expected
    without = {name: t for name, t in saved.items() if not name.endswith("gaussian")}
    generators.load(without)


class Rates(Sink):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.records: list[Record] = []

    def train(self, record: Record) -> None:
        self.rates.append(record["lr"])

    def evaluation(self, record: Record) -> None:
        self.records.append(record)


def unequal_clients(course: str, warmup: int) -> Any:
    return body.configuration(
        data={"partition": {"name": "dirichlet", "alpha": 1.0}, "batch_size": 4},
        sync={"strategy": "federated", "fraction": 0.25, "fusion_mb": None},
        schedule={"name": course, "warmup_steps": warmup},
        train={"epochs": 6, "precision": "fp32", "log_every": 1, "eval_every": 1000},
        checkpoint={"every": 5, "keep": 100},
    )


@pytest.mark.parametrize("course", ["cosine", "linear"])
def test_a_schedule_never_decreases_with_unequal_epochs(course: str, tmp_path: Path) -> None:
    """Federated clients have unequal numbers of samples; resuming at any step keeps the rates."""

    def through(comm: Communicator) -> tuple[list[float], list[int]]:
        log = Rates()
        job = body.trainer(comm, unequal_clients(course, 3), sinks=[log], checkpoints=tmp_path / "checkpoints")
        epochs = [job.sampler.epoch(n).steps for n in range(6)]
        job.run()
        return log.rates, epochs

    rates, epochs = threads.run(4, through)[0]
    assert len(set(epochs)) > 1
    after = rates[3:]
    assert all(a > b for a, b in pairwise(after))
    assert after[-1] > 0
    for folder in checkpoint_folder.folders(tmp_path / "checkpoints")[1::3]:

        def then(comm: Communicator, folder: Path = folder) -> list[float]:
            log = Rates()
            job = body.trainer(comm, unequal_clients(course, 3), sinks=[log])
            job.restore(checkpoint.load(folder, comm, pytest.fail))
            job.run()
            return log.rates

        assert threads.run(4, then)[0] == rates[int(folder.name[5:]) :], folder


@pytest.mark.parametrize("limit", ["max_seconds", "max_bytes"])
def test_budgets_hold_for_the_run_and_not_for_each_process(limit: str, tmp_path: Path) -> None:
    def config(steps: int, **train: Any) -> Any:
        settings = {"precision": "fp32", "epochs": None, "eval_every": 1, **train}
        return body.configuration(train={**settings, "steps": steps}, sync={"shard_optimizer": False})

    def first(comm: Communicator) -> dict[str, float]:
        job = body.trainer(comm, config(10), checkpoints=tmp_path / "checkpoints")
        job.run()
        return dict(job.accounting.spent())

    spent = threads.run(2, first)[0]
    half = {"max_seconds": spent["seconds"] * 0.2, "max_bytes": int(spent["bytes_sent"] * 1.45)}[limit]

    def then(comm: Communicator) -> tuple[str, int, list[Record]]:
        log = Rates()
        job = body.trainer(comm, config(100, **{limit: half}), sinks=[log])
        job.restore(checkpoint.load(tmp_path, comm, pytest.fail))
        return job.run(), job.progress.step, log.records

    reason, step, records = threads.run(2, then)[0]
    assert reason == {"max_seconds": "seconds used up", "max_bytes": "bytes_sent used up"}[limit]
    assert step == {"max_seconds": 11, "max_bytes": 15}[limit]
    assert records[0]["seconds"] > spent["seconds"] * 0.2
    assert records[0]["bytes_sent"] > spent["bytes_sent"]


def test_the_best_value_of_another_metric_is_forgotten(tmp_path: Path) -> None:
    def config(steps: int, metric: str) -> Any:
        early = {"metric": metric, "patience": 9}
        return body.configuration(train={"steps": steps, "epochs": None, "eval_every": 1, "early_stop": early})

    body.trainer(ALONE, config(3, "loss"), checkpoints=tmp_path / "checkpoints").run()
    for metric, kept in (("loss", True), ("accuracy", False)):
        job = body.trainer(ALONE, config(5, metric))
        job.restore(checkpoint.load(tmp_path, ALONE, pytest.fail), lambda text: None)
        assert (job.progress.best is not None) == kept
        job.run()
