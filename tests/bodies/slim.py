"""Bodies of tests of `compress_model`, for every engine: functions of a communicator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.schema import Config
from hvd_train.monitor.base import Record, Sink
from hvd_train.training import checkpoint
from hvd_train.training.agreed import agreed
from hvd_train.training.loop import Trainer
from tests.bodies import training as body

STRATEGIES: dict[str, dict[str, Any]] = {
    "allreduce": {"shard_optimizer": False},
    "sharded": {"shard_optimizer": "auto"},
    "parameter_server": {"strategy": "parameter_server", "fusion_mb": None},
    "merging servers": {"strategy": "parameter_server", "mode": "parameters", "fusion_mb": None},
    "local_sgd": {"strategy": "local_sgd", "period": 3},
    "diloco": {"strategy": "diloco", "period": 3},
    "gossip": {"strategy": "gossip", "fusion_mb": None},
    "push_sum": {"strategy": "gossip", "push_sum": True, "topology": "ring", "fusion_mb": None},
    "federated": {"strategy": "federated", "fraction": 0.5, "fusion_mb": None},
    "independent": {"strategy": "independent", "fusion_mb": None},
}
WITHOUT_MODEL_OF_STEP = {"push_sum", "federated", "independent"}
"""Strategies that refuse `train.ema`."""

PRUNE = {"sparsity": 0.7, "schedule": {"begin": 2, "end": 12, "every": 2}}
PRUNED = ("first.weight", "unused.weight", "last.weight")
"""The trained weights of `body.Odd`; `again.weight` is `first.weight`."""


def teacher(spec: Any) -> nn.Module:
    """Return a model whose outputs differ from those of `body.Odd`.

    Threads share torch's generator, so that its parameters come from another one.
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    return model


def wide_teacher() -> nn.Module:
    return nn.Linear(6, 4)


def configuration(sync: dict[str, Any], compress: dict[str, Any], **train: Any) -> Config:
    train = {"steps": 14, "epochs": None, "accumulate": 2, "eval_every": 7, "clip_norm": 1.0, **train}
    return body.configuration(
        sync=sync, train=train, data={"batch_size": 4}, checkpoint={"every": 7}, compress_model=compress
    )


class Watch(Sink):
    """Records the parameters of this rank after each step, and the evaluations."""

    def __init__(self) -> None:
        self.job: Trainer | None = None
        self.parameters: list[dict[str, Tensor]] = []
        self.evaluations: list[Record] = []

    def step(self, step: int) -> None:
        assert self.job is not None
        self.parameters.append(body.parameters(self.job))

    def evaluation(self, record: Record) -> None:
        self.evaluations.append(record)


def watched(comm: Communicator, config: Config, **around: Any) -> tuple[Trainer, Watch]:
    watch = Watch()
    watch.job = job = body.trainer(comm, config, sinks=[watch], **around)
    return job, watch


def equal_on_all_ranks(comm: Communicator, values: dict[str, Tensor], what: str) -> None:
    for name, value in values.items():
        flat = value.detach().double().reshape(-1)
        assert all(torch.equal(flat, other) for other in comm.all_gather(flat)), f"{what}: {name} differs between ranks"


def zeros(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[name] == 0 for name in PRUNED}


def expected_zeros(step: int) -> int:
    """Return the number of zeros that Zhu and Gupta's schedule has after `step`, of 72 weights."""
    due = max((s for s in (4, 6, 8, 10, 12) if s <= step), default=2)
    return round(0.7 * (1 - (1 - (due - 2) / 10) ** 3) * 72)


def zeros_are_those_of_the_schedule_on_all_ranks(comm: Communicator) -> None:
    """In every strategy: after each step, in the evaluated model, in the averaged one and at the end."""
    for name, sync in STRATEGIES.items():
        ema = {} if name in WITHOUT_MODEL_OF_STEP else {"ema": 0.8}
        job, watch = watched(comm, configuration(sync, {"prune": PRUNE}, **ema))
        job.run()
        for step, values in enumerate(watch.parameters, 1):
            dropped = zeros(values)
            assert sum(int(mask.sum()) for mask in dropped.values()) == expected_zeros(step), f"{name}: step {step}"
            equal_on_all_ranks(comm, dropped, f"{name}: zeros after step {step}")
        with torch.no_grad(), agreed(job.model, job.strategy.view, job.group.evaluates_with):
            last = zeros(body.parameters(job))
        equal_on_all_ranks(comm, last, f"{name}: zeros at the end")
        for found in (last, zeros(watch.parameters[-1])):
            assert sum(int(mask.sum()) for mask in found.values()) == expected_zeros(14), name
        if job.average is not None:
            with job.average.shown():
                averaged = zeros(body.parameters(job))
            assert all(torch.equal(mask, averaged[n]) for n, mask in last.items()), f"{name}: average"
        if comm.rank == 0:
            assert abs(watch.evaluations[-1]["sparsity"] - expected_zeros(14) / 72) < 1e-9, name


def pruned_equals_one_process(comm: Communicator) -> None:
    """Batches of 64 / N on N ranks, by each method and scope."""

    def config(size: int, method: str, scope: str) -> Config:
        prune = {"method": method, "scope": scope, **PRUNE}
        train = {"steps": 14, "epochs": None}
        return body.configuration(data={"batch_size": 64 // size}, train=train, compress_model={"prune": prune})

    for method, scope in (("magnitude", "global"), ("movement", "layer")):
        with body.alone(comm):
            expected = body.trained(SingleCommunicator(), config(1, method, scope))
        found = body.trained(comm, config(comm.size, method, scope))
        body.assert_close(found, expected)
        assert all(torch.equal(found[n] == 0, expected[n] == 0) for n in PRUNED), (method, scope)


def quantized_equals_one_process(comm: Communicator) -> None:
    """Ranges and parameters of N ranks; and ranges are equal on all ranks."""

    def config(size: int) -> Config:
        train = {"steps": 10, "epochs": None}
        return body.configuration(data={"batch_size": 64 // size}, train=train, compress_model={"quantize": "qat"})

    def run(comm: Communicator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        job = body.trainer(comm, config(comm.size))
        job.run()
        return body.parameters(job), {n: b.clone() for n, b in job.model.named_buffers()}

    with body.alone(comm):
        expected = run(SingleCommunicator())
    found = run(comm)
    assert found[1], "the model has no ranges"
    for values, oracle in zip(found, expected, strict=True):
        body.assert_close(values, oracle)
    equal_on_all_ranks(comm, found[1], "ranges")


def ranges_are_equal_when_ranks_have_synchronised(comm: Communicator) -> None:
    for name in ("sharded", "local_sgd", "gossip", "parameter_server", "diloco"):
        steps = 3 * comm.size
        job = body.trainer(comm, configuration(STRATEGIES[name], {"quantize": "qat"}, steps=steps))
        job.run()
        ranges = dict(job.model.named_buffers())
        assert float(ranges["first.inputs.high"]) > 0 > float(ranges["first.inputs.low"]), name
        equal_on_all_ranks(comm, ranges, name)


def distilled_equals_one_process(comm: Communicator) -> None:
    distill = {"teacher": "tests.bodies.slim:teacher", "temperature": 3.0, "alpha": 0.7}

    def config(size: int) -> Config:
        train = {"steps": 8, "epochs": None}
        return body.configuration(data={"batch_size": 64 // size}, train=train, compress_model={"distill": distill})

    with body.alone(comm):
        expected = body.trained(SingleCommunicator(), config(1))
        plain = body.trained(
            SingleCommunicator(), body.configuration(data={"batch_size": 64}, train={"steps": 8, "epochs": None})
        )
    body.assert_close(body.trained(comm, config(comm.size)), expected)
    assert not torch.allclose(plain["last.weight"], expected["last.weight"])


def resumed_is_bitwise_equal(comm: Communicator, folder: Path) -> None:
    """A run continued from step 7 of a schedule to step 12, with everything on, equals the run that saved it."""
    compress = {
        "prune": {"method": "movement", **PRUNE},
        "quantize": "qat",
        "distill": "tests.bodies.slim:teacher",
        "low_rank": {"rank": 1, "layers": ["unused"]},
    }
    compress["prune"]["layers"] = ["first", "last"]
    for name in ("allreduce", "sharded", "local_sgd", "diloco", "gossip", "push_sum", "federated"):
        ema = {} if name in WITHOUT_MODEL_OF_STEP else {"ema": 0.8}
        config, saved = (
            configuration(STRATEGIES[name], compress, precision="fp32", **ema),
            folder / name / "checkpoints",
        )
        through = body.trainer(comm, config, checkpoints=saved)
        through.run()
        second = body.trainer(comm, config)
        second.restore(checkpoint.load(saved / "step-00000007", comm, print))
        second.run()
        for (n, value), found in zip(
            through.model.state_dict().items(), second.model.state_dict().values(), strict=True
        ):
            assert torch.equal(value, found), f"{name}: {n}"
        assert int((second.model.get_parameter("last.weight") == 0).sum()) > 0, name
        if comm.rank == 0:
            usable = checkpoint.weights(saved / "step-00000014")
            dropped = second.slimming.pruner.dropped  # type: ignore[union-attr]
            assert all(not usable[n][mask].any() for n, mask in dropped.items()), name


BODIES = [
    zeros_are_those_of_the_schedule_on_all_ranks,
    pruned_equals_one_process,
    quantized_equals_one_process,
    ranges_are_equal_when_ranks_have_synchronised,
    distilled_equals_one_process,
]
IN_FOLDER = [resumed_is_bitwise_equal]
