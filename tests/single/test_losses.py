"""The losses against those of torch, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, total, units
from hvd_train.compute.losses.bce import balanced
from hvd_train.config import plugins
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.batch import Batch
from hvd_train.data.spec import DataSpec
from hvd_train.errors import Diverged, UserError
from tests.bodies import losses as body
from tests.bodies import training
from tests.engines import threads


@pytest.mark.parametrize("size", [3])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def context(labels: list[int] | None = None, task: str = "classification", classes: int = 3) -> LossContext:
    y = torch.tensor([0, 1, 2] if labels is None else labels)
    split = TensorSplit(torch.zeros(len(y), 1), y, y)
    return LossContext(Dataset(split, split, DataSpec((1,), classes, task)), torch.device("cpu"))  # type: ignore[arg-type]


def make(name: str, known: LossContext | None = None, **options: Any) -> Loss:
    made: Loss = plugins.create("hvd_train.compute.losses", name, known or context(), **options)
    return made


def mean(loss: Loss, outputs: Any, targets: Tensor, whole: Any = None) -> Tensor:
    batch = Batch(None, targets, (torch.zeros(len(targets)), targets) if whole is None else whole)
    loss.check(outputs, batch)
    return total(loss(outputs, batch)) / units(loss, batch)


torch.manual_seed(0)
SCORES, POSITIONS = torch.randn(4, 3), torch.randn(4, 5, 3)
SECOND = POSITIONS.movedim(2, 1)
CLASS, PADDED = torch.tensor([2, 0, 1, 1]), torch.tensor([[0, 1, 2, -100, -100]] * 3 + [[1, -100, -100, -100, -100]])
WEIGHTS = [0.2, 3.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"class_weights": WEIGHTS}], ids=str)
@pytest.mark.parametrize(
    ("outputs", "targets", "as_torch"),
    [(SCORES, CLASS, SCORES), (POSITIONS, PADDED, SECOND), (SECOND, PADDED, SECOND)],
    ids=["classes", "classes last", "classes second"],
)  # fmt: skip
def test_cross_entropy_is_that_of_torch(options: Any, outputs: Tensor, targets: Tensor, as_torch: Tensor) -> None:
    words = {"weight": torch.tensor(WEIGHTS)} if "class_weights" in options else options
    torch.testing.assert_close(
        mean(make("cross_entropy", **options), outputs, targets), F.cross_entropy(as_torch, targets, **words)
    )


def test_probabilities_are_targets_too() -> None:
    soft = torch.rand(4, 3).softmax(-1)
    found = mean(make("cross_entropy", label_smoothing=0.1), SCORES, soft)
    torch.testing.assert_close(found, F.cross_entropy(SCORES, soft, label_smoothing=0.1))
    soft = torch.rand(4, 5, 3).softmax(-1)
    expected = F.cross_entropy(SECOND, soft.movedim(2, 1))
    torch.testing.assert_close(mean(make("cross_entropy"), POSITIONS, soft), expected)


def test_samples_without_a_class_do_not_count() -> None:
    targets = torch.tensor([0, -100, 1, -100])
    loss = make("cross_entropy", context([0, -100, 1]))
    torch.testing.assert_close(mean(loss, SCORES, targets), F.cross_entropy(SCORES, targets))


def test_half_precision_outputs_are_summed_in_single_precision() -> None:
    assert mean(make("cross_entropy"), SCORES.bfloat16(), CLASS).dtype == torch.float32
    torch.testing.assert_close(
        mean(make("mse"), torch.full((2, 1), 1.0).bfloat16(), torch.tensor([1.001, 1.001])),
        torch.tensor(1e-6),
        rtol=1e-3,
        atol=0,
    )


def test_nll_is_that_of_torch() -> None:
    found = mean(make("nll", class_weights=WEIGHTS), SCORES.log_softmax(-1), CLASS)
    torch.testing.assert_close(found, F.nll_loss(SCORES.log_softmax(-1), CLASS, weight=torch.tensor(WEIGHTS)))


@pytest.mark.parametrize(
    ("name", "options", "function"),
    [("mse", {}, F.mse_loss), ("l1", {}, F.l1_loss), ("huber", {"delta": 0.3}, lambda a, b: F.huber_loss(a, b, delta=0.3))],
)  # fmt: skip
def test_regressions_are_those_of_torch(name: str, options: Any, function: Any) -> None:
    targets = torch.randn(4, 3)
    torch.testing.assert_close(mean(make(name, **options), SCORES, targets), function(SCORES, targets))
    torch.testing.assert_close(
        mean(make(name, **options), SCORES[:, :1], targets[:, 0]), function(SCORES[:, 0], targets[:, 0])
    )


def test_bce_is_that_of_torch_and_leaves_out_missing_labels() -> None:
    targets, positive = (torch.randn(4, 3) > 0).long(), torch.tensor([2.0, 1.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(SCORES, targets.float(), pos_weight=positive)
    torch.testing.assert_close(mean(make("bce", pos_weight=positive.tolist()), SCORES, targets), expected)
    targets[0, 1] = targets[2, 2] = -1
    given = targets >= 0
    expected = F.binary_cross_entropy_with_logits(SCORES[given], targets[given].float())
    torch.testing.assert_close(mean(make("bce", ignore_value=-1.0), SCORES, targets), expected)
    torch.testing.assert_close(
        mean(make("bce"), SCORES[:, :1], torch.tensor([0, 1, 1, 0])),
        F.binary_cross_entropy_with_logits(SCORES[:, 0], torch.tensor([0.0, 1, 1, 0])),
    )


def test_balanced_positive_weights_are_negatives_by_positives() -> None:
    targets = torch.tensor([[1, 0, -1], [1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert balanced(targets, -1).tolist() == [pytest.approx(1 / 3), 1.0, 2.0]
    known = context()
    y = targets.double()
    data = Dataset(TensorSplit(torch.zeros(4, 1), y, y), known.data.test, DataSpec((1,), 3, "regression"))
    loss = make("bce", LossContext(data, known.device), pos_weight="balanced", ignore_value=-1.0)
    assert loss._positive.tolist() == [pytest.approx(1 / 3), 1.0, 2.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", ["padding", "lengths"])
def test_ctc_is_that_of_torch(by: str) -> None:
    outputs = torch.randn(3, 7, 5).log_softmax(-1)
    targets, lengths, steps = (
        torch.tensor([[1, 2, 2], [3, 0, 0], [4, 1, 0]]),
        torch.tensor([3, 1, 2]),
        torch.tensor([7, 5, 6]),
    )
    options = {"target_padding": 0} if by == "padding" else {"target_lengths": "number"}
    whole = {"x": outputs, "labels": targets, "number": lengths, "steps": steps}
    found = mean(make("ctc", input_lengths="steps", **options), outputs, targets, whole)
    torch.testing.assert_close(found, F.ctc_loss(outputs.transpose(0, 1), targets, steps, lengths))
    found = mean(make("ctc", **options), outputs, targets, whole)
    torch.testing.assert_close(found, F.ctc_loss(outputs.transpose(0, 1), targets, torch.full((3,), 7), lengths))
    of_outputs = {"logits": outputs, "steps": steps - 1}
    found = mean(make("ctc", input_lengths="steps", **options), of_outputs, targets, whole)
    torch.testing.assert_close(found, F.ctc_loss(outputs.transpose(0, 1), targets, steps - 1, lengths))


TWO = torch.tensor(2.0)


class Attributes:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@pytest.mark.parametrize(
    "outputs",
    [Attributes(loss=TWO, logits=SCORES), {"loss": TWO, "logits": SCORES}, (TWO, SCORES)],
    ids=["attribute", "key", "tuple"],
)  # fmt: skip
def test_the_loss_and_the_scores_of_a_model(outputs: Any) -> None:
    assert mean(make("model"), outputs, CLASS) == 2
    assert scores(outputs) is SCORES


@pytest.mark.parametrize(
    ("options", "targets", "expected"),
    [
        ({}, CLASS, 4),
        ({}, PADDED, 10),
        ({"shifted": True}, PADDED, 6),
        ({"per": "samples"}, PADDED, 4),
        ({"per": "tokens", "ignore_index": 1}, PADDED, 16),
        ({}, SCORES, 4),
    ],
)
def test_units_of_a_models_loss(options: Any, targets: Tensor, expected: float) -> None:
    batch = Batch(None, targets, (torch.zeros(4), targets))
    loss = make("model", **options)
    assert units(loss, batch) == expected
    assert loss(torch.tensor(2.0), batch) == 2 * expected


def test_a_model_may_return_parts_and_a_batch_without_tokens() -> None:
    batch = Batch(None, CLASS, (torch.zeros(4), CLASS))
    assert make("model")({"box": torch.tensor(1.0), "class": torch.tensor(2.0)}, batch) == {"box": 4, "class": 8}
    empty = torch.full((2, 3), -100)
    loss = make("model")(torch.tensor(float("nan"), requires_grad=True), Batch(None, empty, (empty, empty)))
    loss.backward()  # type: ignore[union-attr]
    assert float(loss.detach()) == 0  # type: ignore[union-attr]


def test_class_weights_have_a_mean_of_one_over_the_samples() -> None:
    known = context([0, 0, 0, 1, 1, 2])
    for wanted, expected in (("balanced", [2 / 3, 1.0, 2.0]), ([1.0, 1.0, 4.0], [2 / 3, 2 / 3, 8 / 3])):
        loss = make("cross_entropy", known, class_weights=wanted)
        assert loss._weights.tolist() == pytest.approx(expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "outputs", "targets", "message"),
    [
        ("bce", {}, SCORES, CLASS, "bce takes a target of 0 or 1 for each output.*take cross_entropy"),
        ("bce", {}, SCORES[:, 0], CLASS, r"bce takes targets from 0 to 1, and the first sample has 2"),
        ("bce", {"pos_weight": [1.0, 2.0]}, SCORES, (SCORES > 0).float(), r"pos_weight: expected 3 weights, one a label, got 2"),
        ("cross_entropy", {"class_weights": WEIGHTS}, SCORES, SCORES.softmax(-1), "class_weights: targets are probabilities"),
        ("cross_entropy", {}, SCORES, torch.tensor([0, 1, 2, 3]), "has class 3, and the model returns scores of 3 classes"),
        ("cross_entropy", {}, SCORES, torch.tensor([0, -1, 2, 0]), "has class -1"),
        ("cross_entropy", {}, SCORES, PADDED, "expected a score for each class.*outputs float32.*targets int64"),
        ("cross_entropy", {}, {"boxes": SCORES}, CLASS, "expected a score for each class"),
        ("mse", {}, SCORES, CLASS, "expected a number for each target"),
        ("nll", {}, SCORES, CLASS, r"it takes log-probabilities.*end the model with log_softmax"),
        ("nll", {}, SCORES.log_softmax(-1), SCORES.softmax(-1), "nll takes one class for each target"),
        ("ctc", {"target_padding": 0}, SCORES, CLASS, r"ctc takes outputs \(samples, time, classes\)"),
        ("model", {}, {"logits": SCORES}, CLASS, r"in which there is no loss.*data.label_key"),
        ("model", {}, Attributes(loss=None), CLASS, "in which there is no loss"),
        ("model", {"per": "tokens"}, torch.tensor(1.0), CLASS, r"per: tokens needs targets \(samples, positions\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_first_sample_is_refused(
    name: str, options: Any, outputs: Any, targets: Any, message: str
) -> None:
    with pytest.raises(UserError, match=r"train\.loss.*" + message):
        mean(make(name, **options), outputs, targets)


@pytest.mark.parametrize(
    ("name", "options", "known", "message"),
    [
        ("ctc", {}, None, r"ctc needs the number of labels of each sample; give target_lengths: KEY"),
        ("ctc", {"target_lengths": "n", "target_padding": 0}, None, "one of them"),
        ("cross_entropy", {"class_weights": [1.0, 2.0]}, None, "expected 3 weights, one a class, got 2"),
        ("cross_entropy", {"class_weights": "balanced"}, context(task="language"), "do not have one class each"),
        ("cross_entropy", {"class_weights": [1.0]}, context(task="regression"), "regression, which has no classes"),
    ],
)
def test_options_that_exclude_one_another_are_refused(name: str, options: Any, known: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, known, **options)


def test_label_smoothing_is_below_one() -> None:
    with pytest.raises(UserError, match=r"train\.loss\.label_smoothing"):
        training.configuration(train={"loss": {"name": "cross_entropy", "label_smoothing": 1.0}})


def logits_only() -> nn.Module:
    return nn.Linear(6, 3)


@pytest.mark.parametrize(
    ("loss", "message"),
    [("model", "needs a model that takes the targets too"), ("bce", "take cross_entropy"), ("nll", "log_softmax")],
)
def test_a_loss_that_does_not_fit_the_model_is_refused_before_the_start(loss: str, message: str) -> None:
    config = training.configuration(model={"target": "tests.single.test_losses:logits_only"}, train={"loss": loss})
    with pytest.raises(UserError, match=message):
        training.trainer(SingleCommunicator(), config)


def diverging(outputs: Tensor, batch: Any) -> dict[str, Tensor]:
    """Return a loss whose part `size` is not a number."""
    fit = F.cross_entropy(outputs, batch[1])
    return {"fit": fit, "size": fit * float("nan")}


def test_a_part_that_is_not_a_number_is_named() -> None:
    config = training.configuration(train={"loss": {"target": "tests.single.test_losses:diverging"}})
    with pytest.raises(Diverged, match="the part 'size' of the loss became nan at step 1"):
        training.trainer(SingleCommunicator(), config).run()


def test_stages_return_no_loss() -> None:
    config = body.configuration("model", 1, parallel={"pipeline": 2})

    def told(comm: Any) -> None:
        with pytest.raises(UserError, match=r"train\.loss: 'model' .*parallel"):
            training.trainer(comm, config)

    threads.run(2, told)
