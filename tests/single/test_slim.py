"""`compress_model`: its pure parts, and whole runs on threads; `tests/parallel/test_slim.py` uses mpirun."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.loss import Loss
from hvd_train.config.compress_model import (
    CompressModelSection,
    DistillSection,
    LowRankSection,
    PruneScheduleSection,
)
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.slim import quantization, structure
from hvd_train.slim.distillation import Distillation
from hvd_train.slim.low_rank import LowRank
from hvd_train.slim.pruning import movement
from hvd_train.slim.sparsity import choose, is_due, lowest, pack, sparsity_at, unpack
from hvd_train.state.checkpoint_folder import folders
from hvd_train.trained.exporting.calibration import Calibration
from tests.bodies import slim as body
from tests.bodies import trained, training
from tests.engines import threads

SCHEDULE = PruneScheduleSection(begin=10, end=30, every=8)


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any) -> None:
    threads.run(2, check)


@pytest.mark.parametrize("check", body.IN_FOLDER, ids=lambda f: f.__name__)
def test_bodies_in_a_folder_on_threads(check: Any, tmp_path: Path) -> None:
    threads.run(2, lambda comm: check(comm, tmp_path))


def test_weights_are_chosen_within_the_schedule_and_at_its_end() -> None:
    assert [step for step in range(50) if is_due(SCHEDULE, step)] == [18, 26, 30]


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (10, 0.0), (20, 0.8 * 7 / 8), (25, 0.8 * 63 / 64), (30, 0.8), (99, 0.8)]
)
def test_the_sparsity_rises_as_a_cube(step: int, expected: float) -> None:
    assert sparsity_at(SCHEDULE, 0.8, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])],
)
def test_exactly_the_lowest_are_chosen_and_the_first_of_equals(count: int, expected: list[int]) -> None:
    scores = torch.tensor([5.0, 2.0, 2.0, -1.0, 2.0])
    assert lowest(scores, count).nonzero()[:, 0].tolist() == expected


def test_scope() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([10.0, 20.0, 30.0, 40.0])}
    everywhere, each = choose(scores, {}, 0.5, "global"), choose(scores, {}, 0.5, "layer")
    assert {n: int(m.sum()) for n, m in everywhere.items()} == {"a": 4, "b": 0}
    assert each["a"].tolist() == [[True, True], [False, False]]
    assert each["b"].tolist() == [True, True, False, False]


def test_dropped_weights_stay_dropped_whatever_their_score() -> None:
    dropped = {"a": torch.tensor([False, False, False, True])}
    assert choose({"a": torch.tensor([1.0, 2.0, 3.0, 99.0])}, dropped, 0.5, "global")["a"].tolist() == [1, 0, 0, 1]


def test_masks_are_packed_as_bits() -> None:
    mask = torch.rand(5, 7) > 0.5
    packed = pack(mask)
    assert packed.numel() == 5
    assert torch.equal(unpack(packed, mask), mask)


def test_movement_sums_the_steps_times_the_weights() -> None:
    steps = [torch.randn(4, dtype=torch.float64) for _ in range(4)]
    criterion = movement.create()
    criterion.begin({"w": steps[0]})
    for i, w in enumerate(steps[1:], 1):
        if i == 2:  # a resumed run
            resumed = movement.create()
            resumed.load_state(criterion.state())
            criterion = resumed
        found = criterion.scores({"w": w})["w"]
    expected = sum(((b - a) * a for a, b in pairwise(steps)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_rounded_weights_have_255_values_a_channel_and_stay_as_they_are() -> None:
    weight = torch.randn(6, 3, 3, 3)
    weight[2] = 0
    rounded = quantization.rounded_weight(weight)
    scale = weight.abs().amax((1, 2, 3)) / 127
    for channel in range(6):
        levels = rounded[channel] / (scale[channel] if channel != 2 else 1.0)
        assert float((levels - levels.round()).abs().max()) < 1e-4
        assert float((weight - rounded)[channel].abs().max()) <= float(scale[channel]) / 2 * 1.0001
    torch.testing.assert_close(quantization.rounded_weight(rounded), rounded, rtol=1e-6, atol=0)


def test_rounded_inputs_have_256_values_of_which_zero_is_one_and_gradients_pass_within_the_range() -> None:
    x = torch.tensor([-5.0, -0.3, 0.0, 0.7, 9.0], requires_grad=True)
    low, high = torch.tensor(-1.0), torch.tensor(1.55)
    rounded = quantization.rounded_input(x, low, high)
    torch.testing.assert_close(rounded, torch.tensor([-1.0, -0.3, 0.0, 0.7, 1.55]))
    assert float(rounded.detach()[2]) == 0.0
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*inner, nn.Linear(64, 32), nn.Linear(32, 10, bias=False)).double()


def singular(model: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.linalg.svdvals(model[name].flatten(1))


def test_factors_are_the_best_of_their_rank_for_linear_layers_and_convolutions() -> None:
    whole, made = small(), small()
    structure.apply_(made, CompressModelSection(low_rank=LowRankSection(rank=4)))
    for place in (0, 3, 4):
        layer, factored = whole[place], made[place]
        assert isinstance(factored, LowRank)
        error = float(torch.linalg.matrix_norm((layer.weight - factored.weight).flatten(1)))
        assert error == pytest.approx(float(singular(whole.state_dict(), f"{place}.weight")[4:].norm()), rel=1e-9)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    product = copy.deepcopy(whole)
    with torch.no_grad():
        for place in (0, 3, 4):
            product[place].weight.copy_(made[place].weight)
    torch.testing.assert_close(made(x), product(x))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (whole, made))
    assert sum(m.saved for m in made if isinstance(m, LowRank)) == before - after > 0


def test_the_energy_decides_the_rank_of_trained_parameters_and_a_checkpoint_of_any_rank_is_loaded() -> None:
    whole = small()
    section = CompressModelSection(init="x", low_rank=LowRankSection(energy=0.7), quantize="qat")
    made, loaded = small(), small()
    for model in (made, loaded):
        structure.apply_(model, section)
    assert all(len(m) == 1 for m in made if isinstance(m, LowRank))
    structure.initialise_(made, whole.state_dict(), "x")
    energies = singular(whole.state_dict(), "3.weight").square().cumsum(0)
    rank = next(r for r, energy in enumerate(energies, 1) if energy >= 0.7 * energies[-1])
    assert len(made[3][0].weight) == rank < 32
    loaded.load_state_dict(made.state_dict())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(made.eval()(x), loaded.eval()(x))
    quantization.plain_(loaded)
    assert {type(m) for m in loaded.modules()} == {nn.Sequential, LowRank, nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten}
    torch.testing.assert_close(made(x), loaded(x))


def test_parameters_of_another_model_are_refused() -> None:
    model = small()
    with pytest.raises(UserError, match=r"compress_model\.init: there is of another model: .*0\.weight"):
        structure.initialise_(model, nn.Linear(2, 2).state_dict(), "there")


def test_layers_that_do_not_become_smaller_are_refused() -> None:
    with pytest.raises(UserError, match=r"compress_model\.low_rank: no chosen layer becomes smaller"):
        structure.apply_(small(), CompressModelSection(low_rank=LowRankSection(rank=30)))
    with pytest.raises(
        UserError, match=r"compress_model\.low_rank\.layers: 'head' fits no linear or convolutional layer"
    ):
        structure.apply_(small(), CompressModelSection(low_rank=LowRankSection(rank=2, layers=["head"])))
    with pytest.raises(UserError, match=r"compress_model\.quantize: the model has no linear layer"):
        structure.apply_(nn.Sequential(nn.ReLU()), CompressModelSection(quantize="qat"))


class Tokens(Loss):
    """Sums the cross entropy of the positions whose target is not -100."""

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten(), reduction="sum")

    def count(self, batch: Batch) -> float:
        return int((batch.targets != -100).sum())


def test_the_distillation_loss_is_that_of_the_paper_and_ignored_positions_count_nothing() -> None:
    teacher = nn.Linear(4, 3).double()
    x, own = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, -100, -100], [2, 2, 1, 0, -100]])
    batch = Batch(x, targets, (x, targets))
    loss = Distillation(DistillSection(teacher="t", temperature=3.0, alpha=0.25), Tokens(), teacher, of_numbers=False)
    found = loss(own, batch)
    assert isinstance(found, dict)
    expected = 0.0
    for i, j in (targets != -100).nonzero().tolist():
        p, q = (torch.softmax(z[i, j] / 3, -1) for z in (teacher(x), own))
        expected += 9 * float((p * (p / q).log()).sum())
    assert float(found["teacher"]) == pytest.approx(0.25 * expected)
    assert float(found["task"]) == pytest.approx(0.75 * float(Tokens()(own, batch)))
    found["teacher"].backward()
    assert teacher.weight.grad is None
    assert own.grad is not None
    assert not own.grad[targets == -100].any()
    with torch.no_grad():
        assert torch.equal(loss(own, batch), Tokens()(own, batch))


def told(message: str, compress: dict[str, Any], ranks: int = 2, **sections: Any) -> None:
    config = training.configuration(compress_model=compress, **sections)

    def refused(comm: Communicator) -> None:
        with pytest.raises(UserError, match=message):
            training.trainer(comm, config)

    threads.run(ranks, refused)


@pytest.mark.parametrize("strategy", ["async_ps", "ssp", "async_gossip"])
def test_asynchronous_strategies_cannot_prune(strategy: str) -> None:
    told(
        r"compress_model\.prune: ranks of sync\.strategy",
        {"prune": body.PRUNE},
        sync={"strategy": strategy, "fusion_mb": None},
    )


def test_an_asynchronous_strategy_quantizes_and_distills() -> None:
    sync = {"strategy": "async_ps", "fusion_mb": None}
    compress = {"quantize": "qat", "distill": "tests.bodies.slim:teacher"}
    config = training.configuration(sync=sync, compress_model=compress, train={"steps": 6, "epochs": None})

    def trains(comm: Communicator) -> float:
        job = training.trainer(comm, config)
        job.run()
        return float(job.model.get_buffer("first.inputs.high"))

    assert all(high > 0 for high in threads.run(2, trains))


def test_what_cannot_be_compressed_is_refused_in_one_sentence() -> None:
    told(r"compress_model: parallel divides the layers", {"quantize": "qat"}, parallel={"tensor": 2})
    secure = {"strategy": "federated", "secure": True, "fusion_mb": None}
    told(r"compress_model\.quantize: ranks would tell one another", {"quantize": "qat"}, ranks=3, sync=secure)
    told(r"compress_model\.prune\.layers: 'firts' fits no", {"prune": {**body.PRUNE, "layers": ["firts"]}})
    wrong = "tests.bodies.slim:wide_teacher"
    told(
        r"distill\.teacher: it returns float64 \[1, 4\] for a sample, and the model float64 \[1, 3\]",
        {"distill": wrong},
        ranks=1,
    )


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        ({"low_rank": {}}, "give 'rank' or 'energy'"),
        ({"low_rank": {"energy": 0.9}}, "init"),
        ({"prune": {"sparsity": 0.5, "schedule": {"begin": 9, "end": 9}}}, "expected an end after begin"),
        ({"prune": {"sparsity": 1.0, "schedule": {"end": 9}}}, r"prune\.sparsity"),
        ({"prune": {"method": "magnitud", "sparsity": 0.5, "schedule": {"end": 9}}}, "magnitude"),
        ({"quantize": "qad"}, "qat"),
    ],
    ids=["no rule", "energy", "order", "all", "name", "quantize"],
)
def test_mistakes_in_the_section(compress: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training.configuration(compress_model=compress)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("dense"))


def test_a_run_begins_with_a_trained_model_is_taught_by_it_and_is_loaded_without_data(
    dense: Path, tmp_path: Path
) -> None:
    """Low rank by energy, quantisation and pruning together; one more step changes little."""
    compress = {
        "init": str(dense),
        "low_rank": {"energy": 0.9},
        "quantize": "qat",
        "prune": {"sparsity": 0.5, "schedule": {"end": 2, "every": 1}},
        "distill": {"teacher": str(dense / "checkpoints" / folders(dense / "checkpoints")[0].name)},
    }
    run = trained.digits(tmp_path, compress_model=compress, train={"steps": 3})
    loaded, before = load_model(find_run(run)), load_model(find_run(dense))
    weights = [m.weight for m in loaded.module.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * sum(w.numel() for w in weights))
    ranges = [m for m in loaded.module.modules() if isinstance(m, quantization.InputRange)]
    assert len(ranges) == len(weights)
    assert all(float(r.high) > 0 for r in ranges)
    x = torch.rand(20, 1, 8, 8)
    agreement = float((loaded.module(x).argmax(1) == before.module(x).argmax(1)).double().mean())
    assert agreement > 0.5, agreement
    assert math.prod(loaded.spec.input_shape) == 64


def test_int8_weights_of_a_quantized_run_are_its_own(tmp_path: Path) -> None:
    from hvd_train.trained.exporting.quantizers import torch_int8_weights

    run = trained.digits(tmp_path, compress_model={"quantize": "qat"}, train={"steps": 5})
    model = load_model(find_run(run)).module
    quantization.plain_(model)
    stored = copy.deepcopy(model)
    torch_int8_weights.create().quantize_(stored, Calibration([], [], lambda model, batch: None))
    x = torch.rand(20, 1, 8, 8)
    torch.testing.assert_close(stored(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_dense_run_is_pruned_by_resuming_it(tmp_path: Path) -> None:
    """The checkpoint knows nothing of pruning: it begins with no zeros."""
    from hvd_train.training import checkpoint

    config = body.configuration({}, {}, steps=7)
    training.trainer(SingleCommunicator(), config, checkpoints=tmp_path / "checkpoints").run()
    pruned = body.configuration({}, {"prune": {"sparsity": 0.5, "schedule": {"begin": 7, "end": 12, "every": 1}}})
    job = training.trainer(SingleCommunicator(), pruned)
    job.restore(checkpoint.load(tmp_path, SingleCommunicator(), print))
    job.run()
    assert job.slimming.metrics() == {"sparsity": 0.5}


def test_a_checkpoint_is_the_best_only_once_the_model_has_its_zeros(tmp_path: Path) -> None:
    config = training.configuration(
        train={"steps": 14, "epochs": None, "eval_every": 2},
        compress_model={"prune": body.PRUNE},
        checkpoint={"best": {"metric": "accuracy"}, "every": 100},
    )
    job = training.trainer(SingleCommunicator(), config, checkpoints=tmp_path / "checkpoints")
    job.run()
    assert job.best.mark is not None
    assert job.best.mark.step >= 12
