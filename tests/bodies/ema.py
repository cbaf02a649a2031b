"""Bodies of tests of `train.ema`, which compute the average again from the parameters of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.schema import Config
from hvd_train.monitor.base import Record, Sink
from hvd_train.state import checkpoint_folder
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import parallelism
from tests.bodies import training as body

DECAY = 0.8
STRATEGIES: dict[str, dict[str, Any]] = {
    "allreduce": {"shard_optimizer": False},
    "sharded": {"shard_optimizer": "auto"},
    "parameter_server": {"strategy": "parameter_server", "fusion_mb": None},
    "local_sgd": {"strategy": "local_sgd", "period": 3},
    "diloco": {"strategy": "diloco", "period": 3},
    "gossip": {"strategy": "gossip", "fusion_mb": None},
}


class Watch(Sink):
    """Records the parameters of this rank at the start and after each step, and the evaluations."""

    def __init__(self) -> None:
        self.job: Trainer | None = None
        self.parameters: list[dict[str, Tensor]] = []
        self.evaluations: list[Record] = []

    def _record(self) -> None:
        assert self.job is not None
        self.parameters.append(body.parameters(self.job))

    def open(self, record: Record) -> None:
        self._record()

    def step(self, step: int) -> None:
        self._record()

    def evaluation(self, record: Record) -> None:
        self.evaluations.append(record)


def configuration(sync: dict[str, Any], **train: Any) -> Config:
    train = {"steps": 8, "epochs": None, "ema": DECAY, "accumulate": 2, "eval_every": 4, **train}
    return body.configuration(sync=sync, train=train, data={"batch_size": 4})


def watched(comm: Communicator, config: Config, **around: Any) -> tuple[Trainer, Watch]:
    watch = Watch()
    watch.job = job = body.trainer(comm, config, sinks=[watch], **around)
    return job, watch


def shown(job: Trainer) -> dict[str, Tensor]:
    assert job.average is not None
    with job.average.shown():
        return body.parameters(job)


def mean(comm: Communicator, values: dict[str, Tensor]) -> dict[str, Tensor]:
    for value in values.values():
        comm.all_reduce_(value, "mean")
    return values


def folded(models: list[dict[str, Tensor]], decay: float = DECAY) -> dict[str, Tensor]:
    """Return the moving average of `models`, which begins at the first one."""
    average = {name: value.clone() for name, value in models[0].items()}
    for model in models[1:]:
        average = {name: decay * average[name] + (1 - decay) * value for name, value in model.items()}
    return average


def is_the_average_of_the_mean_model(comm: Communicator) -> None:
    """In every strategy, and ranks train as without it."""
    for name, sync in STRATEGIES.items():
        job, watch = watched(comm, configuration(sync))
        job.run()
        last = body.parameters(job)
        expected = folded([mean(comm, model) for model in watch.parameters])
        body.assert_close(shown(job), expected, 1e-9)
        if name in ("sharded", "local_sgd"):
            plain = body.trained(comm, configuration(sync, ema=None))
            assert all(torch.equal(value, plain[n]) for n, value in last.items()), f"{name}: train.ema changes training"


def evaluations_see_the_average(comm: Communicator) -> None:
    job, watch = watched(comm, configuration(STRATEGIES["allreduce"]))
    job.run()
    x, y = job.data.test.batch(torch.arange(len(job.data.test)))
    for record, steps in zip(watch.evaluations, (4, 8), strict=True):
        with torch.no_grad():
            for p, value in zip(job.model.parameters(), folded(watch.parameters[: steps + 1]).values(), strict=True):
                p.data = value
            expected = float(torch.nn.functional.cross_entropy(job.model(x.double()), y))
        assert abs(record["loss"] - expected) < 1e-9


def resumed_is_bitwise_equal(comm: Communicator, folder: Path) -> None:
    for name in ("sharded", "local_sgd"):
        sync, where = STRATEGIES[name], folder / name
        through, _ = watched(comm, configuration(sync))
        through.run()
        watched(comm, configuration(sync, steps=6), checkpoints=where / "checkpoints")[0].run()
        second, _ = watched(comm, configuration(sync), checkpoints=where / "checkpoints")
        second.restore(checkpoint.load(where, comm, print))
        second.run()
        expected, found = shown(through), shown(second)
        assert all(torch.equal(value, found[n]) for n, value in expected.items()), name
        if comm.rank == 0:
            usable = checkpoint.weights(where / "checkpoints" / "step-00000008")
            raw = checkpoint.read(where / "checkpoints" / "step-00000008")["model.safetensors"]
            assert all(torch.equal(value, usable[n]) for n, value in expected.items()), name
            assert len(raw), name


def of_parts_equals_that_of_one_process(comm: Communicator, folder: Path) -> None:
    """The stages of a pipeline save one averaged model."""
    train = {"ema": {"decay": DECAY, "warmup": True}}
    for copies, parallel in ((1, {"pipeline": 1}), (comm.size // 2, {"pipeline": 2})):
        config = parallelism.configuration("untied", "sgd", 8 // copies, 2, parallel=parallel, train=train)
        where = folder / str(parallel["pipeline"])
        if parallel["pipeline"] == 1:
            with body.alone(comm):
                if comm.rank == 0:
                    body.trainer(SingleCommunicator(), config, checkpoints=where).run()
            continue
        body.trainer(comm, config, checkpoints=where).run()
    if comm.rank == 0:
        one, parts = (checkpoint.weights(checkpoint_folder.folders(folder / str(n))[0]) for n in (1, 2))
        body.assert_close(parts, one)


BODIES = [is_the_average_of_the_mean_model, evaluations_see_the_average]
IN_FOLDER = [resumed_is_bitwise_equal, of_parts_equals_that_of_one_process]
