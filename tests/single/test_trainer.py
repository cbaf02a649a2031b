"""The trainer on threads and on one rank; `tests/parallel/test_trainer.py` uses mpirun."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.precision import Precision
from hvd_train.errors import Diverged, Stopped, UserError
from hvd_train.monitor.base import Record, Sink
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    if size == 3 and check is body.equals_one_process:
        size = 8
    threads.run(size, check)


def test_resumed_is_bitwise_equal_on_one_rank(tmp_path: Path) -> None:
    body.resumed_is_bitwise_equal(SingleCommunicator(), tmp_path)


def test_ranks_end_with_equal_parameters_though_they_began_with_others() -> None:
    def start_apart(comm: Communicator) -> dict[str, torch.Tensor]:
        job = body.trainer(comm, body.configuration())
        with torch.no_grad():
            for p in job.model.parameters():
                p.add_(comm.rank)
        job.run()
        return body.parameters(job)

    first, *others = threads.run(3, start_apart)
    for other in others:
        for name, value in first.items():
            assert torch.equal(value, other[name]), name


def test_a_parameter_that_no_rank_uses_stays_as_it_was() -> None:
    before = torch.nn.Linear(6, 3).state_dict()

    def run(comm: Communicator) -> torch.Tensor:
        job = body.trainer(comm, body.configuration())
        with torch.no_grad():
            job.model.unused.load_state_dict(before)  # type: ignore[operator, union-attr]
        job.run()
        return job.model.unused.weight  # type: ignore[return-value, union-attr]

    assert all(torch.equal(w, before["weight"].double()) for w in threads.run(2, run))


@pytest.mark.parametrize("size", [1, 3])
def test_metrics_are_means_over_samples_of_all_ranks(size: int) -> None:
    def run(comm: Communicator) -> tuple[Record, float]:
        log = body.Log()
        job = body.trainer(comm, body.configuration(train={"epochs": 1, "log_every": 1}), sinks=[log])
        job.run()
        x, y = job.data.test.batch(torch.arange(len(job.data.test)))
        with torch.no_grad():
            return log.evaluated[-1], float(torch.nn.functional.cross_entropy(job.model(x.double()), y))

    for record, expected in threads.run(size, run):
        assert record["loss"] == pytest.approx(expected)


def test_the_logged_loss_is_that_of_the_samples_since_the_last_line() -> None:
    logs = [body.Log(), body.Log()]
    frozen = {"optimizer": {"lr": 0.0}}
    for log, every in zip(logs, (1, 2), strict=True):
        settings = {"steps": 4, "epochs": None, "log_every": every}
        body.trainer(SingleCommunicator(), body.configuration(**frozen, train=settings), sinks=[log]).run()
    ones, twos = ([r["loss"] for r in log.trained] for log in logs)
    assert twos == pytest.approx([(ones[0] + ones[1]) / 2, (ones[2] + ones[3]) / 2])
    assert len(set(ones)) == 4


def test_all_ranks_agree_on_the_number_of_steps_whatever_their_shares() -> None:
    def steps(comm: Communicator) -> int:
        job = body.trainer(comm, body.configuration(data={"batch_size": 1}, train={"epochs": 1}))
        job.run()
        return job.progress.step

    assert threads.run(4, steps) == [math.ceil(body.SAMPLES / 4)] * 4


def test_a_signal_on_one_rank_stops_all_after_the_same_step_and_nothing_is_lost(tmp_path: Path) -> None:
    config = body.configuration()
    through = threads.run(2, lambda comm: body.trained(comm, config))[0]

    class Signal(Sink):
        def __init__(self, job: list[Any]) -> None:
            self.job = job

        def step(self, step: int) -> None:
            if step == 5:
                self.job[0].stop = lambda: True

    def interrupted(comm: Communicator) -> int:
        holder: list[Any] = []
        sinks: list[Sink] = [Signal(holder)] if comm.rank == 1 else []
        job = body.trainer(comm, config, checkpoints=tmp_path / "checkpoints", sinks=sinks)
        holder.append(job)
        with pytest.raises(Stopped):
            job.run()
        return job.progress.step

    def resumed(comm: Communicator) -> dict[str, torch.Tensor]:
        job = body.trainer(comm, config)
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return body.parameters(job)

    assert threads.run(2, interrupted) == [6, 6]
    again = threads.run(2, resumed)[0]
    assert all(torch.equal(through[name], again[name]) for name in through)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1), (1, 2)])
def test_resume_under_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    """The global batch stays the same, so the result is as if the number had never changed."""

    def config(size: int, steps: int) -> Any:
        return body.configuration(data={"batch_size": 32 // size}, train={"steps": steps, "epochs": None})

    def first(comm: Communicator) -> None:
        body.trainer(comm, config(before, 5), checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> dict[str, torch.Tensor]:
        job = body.trainer(comm, config(after, 12))
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return body.parameters(job)

    threads.run(before, first)
    body.assert_close(threads.run(after, then)[0], body.trained(SingleCommunicator(), config(1, 12)))


def test_resume_with_a_larger_global_batch_repeats_less_than_one_of_them(tmp_path: Path) -> None:
    config = body.configuration(data={"batch_size": 10}, train={"epochs": 2})

    def first(comm: Communicator) -> None:
        short = body.configuration(data={"batch_size": 10}, train={"steps": 7, "epochs": None})
        body.trainer(comm, short, checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> tuple[int, int]:
        job = body.trainer(comm, config)
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return job.progress.step, job.progress.samples

    threads.run(1, first)
    (step, samples), _, _ = threads.run(3, then)
    assert step == 7 + (7 - 2) + 7  # 70 samples are two whole steps of 30; an epoch has seven
    assert samples == 2 * body.SAMPLES + 10


def test_a_loss_that_is_no_number_says_where() -> None:
    config = body.configuration(optimizer={"lr": 1e200}, train={"loss": "mse"}, data={"batch_size": 101})
    with pytest.raises(Diverged, match=r"loss became (nan|inf) at step \d+ \(epoch \d+, micro-batch 1\)"):
        body.trained(SingleCommunicator(), _regression(config))


def test_a_held_out_loss_that_is_no_number_says_where() -> None:
    config = body.configuration(
        optimizer={"lr": 1e200, "momentum": None, "weight_decay": None},
        model={"name": "linear", "target": None},
        data={"name": "synthetic", "classes": 0, "samples": 64, "batch_size": 64, "target": None},
        train={"epochs": 1},
    )
    with pytest.raises(Diverged, match=r"the held-out loss became (nan|inf) after step 1"):
        body.trained(SingleCommunicator(), config)


def _regression(config: Any) -> Any:
    return body.configuration(
        optimizer={"lr": 1e200, "momentum": None, "weight_decay": None},
        model={"name": "linear", "target": None},
        data={"name": "synthetic", "classes": 0, "samples": 64, "target": None},
    )


def test_early_stop_and_convergence_end_the_run_on_every_rank() -> None:
    def reason(comm: Communicator, train: dict[str, Any]) -> tuple[str, int]:
        job = body.trainer(comm, body.configuration(train={"epochs": 50, **train}))
        return job.run(), job.progress.epoch

    early = {"early_stop": {"metric": "loss", "patience": 2, "min_delta": 10.0}}
    assert {r for r, _ in threads.run(2, lambda c: reason(c, early))} == {"early stop"}
    converge = {"converge": {"metric": "accuracy", "value": 0.7}}
    (why, epochs), _ = threads.run(2, lambda c: reason(c, converge))
    assert why == "converged"
    assert epochs < 49


def test_an_unknown_metric_is_refused_with_the_choices() -> None:
    config = body.configuration(train={"converge": {"metric": "acuracy", "value": 1}})
    with pytest.raises(UserError, match=r"train\.converge\.metric: no metric 'acuracy'; did you mean 'accuracy'"):
        body.trained(SingleCommunicator(), config)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_processor_that_emulates_a_number_format_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for supported, texts in ((True, 0), (False, 1)):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda supported=supported: supported)
        assert len(Precision(name, torch.device("cpu")).warnings) == texts
        assert not Precision(name, torch.device("cuda")).warnings
        assert not Precision("fp32", torch.device("cpu")).warnings


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
def test_every_precision_learns(precision: str) -> None:
    job = body.trainer(
        SingleCommunicator(), body.configuration(train={"precision": precision, "epochs": 8}, optimizer={"lr": 0.05})
    )
    job.run()
    assert job.evaluation.metrics["accuracy"] > 0.7
    assert next(job.model.parameters()).dtype == (torch.float64 if precision == "fp64" else torch.float32)


def test_fp16_skips_a_step_whose_scaled_gradients_overflow() -> None:
    job = body.trainer(
        SingleCommunicator(), body.configuration(train={"precision": "fp16", "steps": 1, "epochs": None})
    )
    job.precision.scaler._init_scale = 2.0**127
    before = body.parameters(job)
    job.run()
    assert all(torch.equal(before[name], p) for name, p in body.parameters(job).items())
    assert job.precision.scaler.get_scale() < 2.0**127


def test_buffers_are_averaged_for_evaluation_only() -> None:
    config = body.configuration(
        model={"name": "resnet", "depth": 8, "width": 2, "target": None},
        data={"name": "digits", "batch_size": 64, "target": None},
        train={"epochs": 1},
    )

    def run(comm: Communicator) -> tuple[torch.Tensor, torch.Tensor]:
        job = body.trainer(comm, config)
        job.run()
        own = next(b for n, b in job.model.named_buffers() if n.endswith("running_mean")).clone()
        shared = next(v for n, v in job.state.snapshot().model.items() if n.endswith("running_mean"))
        return own, shared

    (own0, mean0), (own1, mean1) = threads.run(2, run)
    assert not torch.equal(own0, own1)
    torch.testing.assert_close(mean0, (own0 + own1) / 2)
    assert torch.equal(mean0, mean1)


def test_a_resumed_rank_keeps_its_own_buffers(tmp_path: Path) -> None:
    """A start makes running statistics equal to those of rank 0."""

    def config(steps: int) -> Any:
        return body.configuration(
            model={"name": "resnet", "depth": 8, "width": 2, "target": None},
            data={"name": "digits", "batch_size": 16, "target": None},
            train={"steps": steps, "epochs": None, "eval_every": 100},
        )

    def run(comm: Communicator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        through = body.trainer(comm, config(6))
        through.run()
        body.trainer(comm, config(3), checkpoints=tmp_path / "checkpoints").run()
        resumed = body.trainer(comm, config(6))
        resumed.restore(checkpoint.load(tmp_path, comm, print))
        resumed.run()
        return dict(through.model.named_buffers()), dict(resumed.model.named_buffers())

    (_, first), (expected, second) = threads.run(2, run)
    assert all(torch.equal(value, second[name]) for name, value in expected.items())
    assert not all(torch.equal(value, first[name]) for name, value in second.items())


@pytest.mark.parametrize(
    ("before", "after"), [("allreduce", "diloco"), ("diloco", "allreduce"), ("local_sgd", "federated")]
)
def test_another_strategy_continues_from_the_model(tmp_path: Path, before: str, after: str) -> None:
    def config(strategy: str, steps: int) -> Any:
        sync = {"strategy": strategy, "fusion_mb": None}
        return body.configuration(sync=sync, train={"steps": steps, "epochs": None})

    def run(comm: Communicator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
        first = body.trainer(comm, config(before, 5), checkpoints=tmp_path / "checkpoints")
        first.run()
        second = body.trainer(comm, config(after, 8))
        second.restore(checkpoint.load(tmp_path, comm, print))
        taken_over = body.parameters(second)
        second.run()
        return body.parameters(first), taken_over, second.progress.step

    for left, taken_over, steps in threads.run(2, run):
        body.assert_close(taken_over, left)
        assert steps == 8


def test_sparse_embedding_gradients_stay_sparse_and_are_averaged() -> None:
    def run(comm: Communicator) -> torch.Tensor:
        config = body.configuration(
            model={"target": "tests.single.test_trainer:Bag"},
            data={"target": "tests.single.test_trainer:tokens", "batch_size": 16 // comm.size},
            optimizer={"name": "SparseAdam", "lr": 0.01, "momentum": None, "weight_decay": None},
            train={"epochs": 2},
        )
        return body.trained(comm, config)["weight"]

    alone = threads.run(1, run)[0]
    for weight in threads.run(4, run):
        torch.testing.assert_close(weight, alone)


class Bag(torch.nn.EmbeddingBag):
    def __init__(self) -> None:
        super().__init__(50, 3, sparse=True)


def tokens() -> Any:
    from hvd_train.data.base import Dataset, TensorSplit
    from hvd_train.data.spec import DataSpec

    x = torch.randint(50, (70, 4), generator=torch.Generator().manual_seed(1))
    y = x[:, 0] % 3
    return Dataset(TensorSplit(x, y, y), TensorSplit(x, y, y), DataSpec((4,), 3, "classification"))
