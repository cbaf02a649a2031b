"""What `ddl evaluate` reports: exact on any number of ranks, and equal to an independent computation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as F
from sklearn import metrics as sk
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.data.batch import Batch, divide
from hvd_train.data.spec import DataSpec
from hvd_train.trained.evaluating import tokens
from hvd_train.trained.evaluating.calibration import Calibration
from hvd_train.trained.evaluating.choose import batch_size
from hvd_train.trained.evaluating.classes import ClassReport
from hvd_train.trained.evaluating.curves import ScoreBins, log_odds
from hvd_train.trained.evaluating.labels import LabelReport
from hvd_train.trained.evaluating.numbers import NumberReport
from hvd_train.trained.evaluating.report import Report
from hvd_train.trained.evaluating.tokens import TokenReport
from hvd_train.trained.evaluating.worst import kept_positions
from hvd_train.training.evaluation import held_out_part
from tests.bodies.evaluating import assert_close
from tests.engines import threads

N, BATCH, CLASSES = 203, 8, 4
WORLDS = (2, 3, 7)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Rows:
    """A split of `n` samples whose batch is the positions themselves."""

    n: int = N

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: Tensor) -> Tensor:
        return indices


def measured(comm: Communicator, report: Callable[[], Report], outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return what a report says of given outputs, of which each rank sees its batches."""
    made = report()
    for positions in held_out_part(Rows(len(targets)), None, comm, BATCH).split(BATCH):
        if len(positions):
            aims = targets[positions]
            made.update(outputs[positions], Batch(positions, aims, (positions, aims), positions))
    return made.compute(comm)


def on_ranks(
    report: Callable[[], Report], outputs: Tensor, targets: Tensor, worlds: Sequence[int] = (3,)
) -> dict[str, Any]:
    """Return what one rank says, after comparing it with what the ranks of `worlds` say."""
    alone = measured(SingleCommunicator(), report, outputs, targets)
    for size in worlds:
        for found in threads.run(size, partial(measured, report=report, outputs=outputs, targets=targets)):
            assert_close(found, alone)
    return alone


CLASS_TARGETS = (noise(N, seed=1).abs() * 1.3).long().clamp(max=CLASSES - 1)
CLASS_OUTPUTS = noise(N, CLASSES) * 2 + torch.nn.functional.one_hot(CLASS_TARGETS, CLASSES)
NAMES = ["ape", "bee", "cat", "dog"]


def test_a_classification_has_the_figures_of_torchmetrics_and_scikit_learn() -> None:
    found = on_ranks(partial(ClassReport, NAMES, Rows()), CLASS_OUTPUTS, CLASS_TARGETS, WORLDS)
    probabilities, targets = CLASS_OUTPUTS.double().softmax(1), CLASS_TARGETS
    chosen = probabilities.argmax(1)
    assert found["confusion"] == sk.confusion_matrix(targets, chosen, labels=range(CLASSES)).tolist()
    expected = sk.precision_recall_fscore_support(targets, chosen, labels=range(CLASSES), zero_division=0)
    for i, row in enumerate(found["rows"]):
        assert row["class"] == NAMES[i]
        values = row["precision"], row["recall"], row["f1"], row["support"]
        assert values == pytest.approx([column[i] for column in expected], rel=1e-12)
        area = sk.roc_auc_score(targets == i, probabilities[:, i])
        assert abs(row["auroc"] - area) <= row["auroc_error"] + 1e-12 < 0.005
        precision = sk.average_precision_score(targets == i, probabilities[:, i])
        assert abs(row["average_precision"] - precision) <= row["average_precision_error"] + 1e-12 < 0.06
    error = F.calibration_error(probabilities, targets, task="multiclass", num_classes=CLASSES)
    assert found["figures"]["calibration_error"] == pytest.approx(float(error), rel=1e-6)
    worst = F.calibration_error(probabilities, targets, task="multiclass", num_classes=CLASSES, norm="max")
    assert found["calibration"]["largest_error"] == pytest.approx(float(worst), rel=1e-6)


def test_the_worst_samples_are_those_with_the_largest_loss() -> None:
    found = on_ranks(partial(ClassReport, NAMES, Rows()), CLASS_OUTPUTS, CLASS_TARGETS)["worst"]
    losses = torch.nn.functional.cross_entropy(CLASS_OUTPUTS.double(), CLASS_TARGETS, reduction="none")
    order = losses.argsort(descending=True)[:10]
    assert [row["position"] for row in found] == order.tolist()
    assert [row["loss"] for row in found] == pytest.approx(losses[order].tolist(), rel=1e-12)
    first, at = found[0], int(order[0])
    probabilities = CLASS_OUTPUTS[at].double().softmax(0)
    assert first["target"] == NAMES[CLASS_TARGETS[at]]
    assert first["prediction"] == NAMES[int(probabilities.argmax())]
    assert first["probability"] == pytest.approx(float(probabilities.max()), rel=1e-12)
    assert first["target_probability"] == pytest.approx(float(probabilities[CLASS_TARGETS[at]]), rel=1e-12)


def test_equal_losses_are_in_the_order_of_positions_and_not_a_number_is_first() -> None:
    outputs = torch.zeros(N, 2)
    outputs[100] = math.nan
    found = on_ranks(partial(ClassReport, ["a", "b"], Rows()), outputs, torch.zeros(N, dtype=torch.int64))["worst"]
    assert [row["position"] for row in found] == [100, *range(9)]


def test_positions_without_a_target_count_nothing() -> None:
    outputs, targets = noise(N, CLASSES, 5), CLASS_TARGETS[:, None].repeat(1, 5)
    targets[torch.arange(N)[:, None] % 5 < torch.arange(5)] = -100
    found = on_ranks(partial(ClassReport, NAMES, Rows()), outputs, targets)
    assert sum(row["support"] for row in found["rows"]) == int((targets != -100).sum())
    right = (outputs.argmax(1) == targets) & (targets != -100)
    assert found["figures"]["accuracy"] == int(right.sum()) / int((targets != -100).sum())
    first = found["worst"][0]
    assert first["wrong_positions"] <= first["positions"] == 1 + first["position"] % 5


def test_one_logit_is_the_second_of_two_classes() -> None:
    logits, targets = noise(N, 1), (noise(N, 1, seed=3) > 0).float()
    found = on_ranks(partial(ClassReport, ["no", "yes"], Rows()), logits, targets)
    assert found["rows"][1]["recall"] == int(((logits > 0) & (targets == 1)).sum()) / int(targets.sum())
    area = sk.roc_auc_score(targets[:, 0], logits[:, 0])
    for row in found["rows"]:
        assert abs(row["auroc"] - area) <= row["auroc_error"] + 1e-12


def test_many_classes_have_rows_but_no_matrix() -> None:
    targets = torch.arange(N) * 7 % 1001
    found = on_ranks(partial(ClassReport, [str(i) for i in range(1001)], Rows()), noise(N, 1001), targets)
    assert found["confusion"] is found["curves"] is None
    assert sum(row["support"] for row in found["rows"]) == N


def test_labels_have_the_figures_of_scikit_learn() -> None:
    targets = (noise(N, 3, seed=2) > 0.4).float()
    targets[::5, 1] = -1
    outputs = noise(N, 3, seed=4) + targets
    found = on_ranks(partial(LabelReport, ["x", "y", "z"], Rows(), -1.0), outputs, targets, WORLDS)
    for i, row in enumerate(found["rows"]):
        given = targets[:, i] != -1
        truth, logits = targets[given, i], outputs[given, i]
        expected = sk.precision_recall_fscore_support(truth, logits >= 0, average="binary")[:3]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(expected, rel=1e-12)
        assert abs(row["auroc"] - sk.roc_auc_score(truth, logits)) <= row["auroc_error"] + 1e-12
        assert row["given"] == int(given.sum())
    right = (((outputs >= 0) == (targets > 0.5)) | (targets == -1)).all(1)
    assert found["figures"]["all_labels_right"] == int(right.sum()) / N
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs.double(), targets.clamp(min=0).double(), reduction="none"
    ).where(targets != -1, 0)
    means = losses.sum(1) / (targets != -1).sum(1)
    assert [row["position"] for row in found["worst"]] == means.argsort(descending=True)[:10].tolist()


def test_numbers_have_the_figures_of_scikit_learn_also_far_from_zero() -> None:
    targets = noise(N, 2, seed=5).double() + torch.tensor([1e7, 0.0], dtype=torch.float64)
    outputs = targets + noise(N, 2, seed=6) / 10
    found = on_ranks(partial(NumberReport, ["u", "v"], Rows(), N), outputs, targets, WORLDS)
    for i, row in enumerate(found["rows"]):
        aims, values = targets[:, i].numpy(), outputs[:, i].numpy()
        assert row["r2"] == pytest.approx(sk.r2_score(aims, values), rel=1e-9)
        assert row["mae"] == pytest.approx(sk.mean_absolute_error(aims, values), rel=1e-12)
        assert row["rmse"] ** 2 == pytest.approx(sk.mean_squared_error(aims, values), rel=1e-12)
        assert row["bias"] == pytest.approx(float((values - aims).mean()), rel=1e-9)
        assert row["largest_error"] == float(np.abs(values - aims).max())
    assert found["points"]["targets"] == targets.tolist()


def test_points_of_many_samples_lie_at_equal_distances() -> None:
    targets = torch.arange(5_100).double()[:, None]
    found = on_ranks(partial(NumberReport, ["u"], Rows(5_100), 5_100), targets, targets)
    assert [point[0] for point in found["points"]["targets"]] == list(range(0, 5_100, 2))


def test_a_constant_target_has_no_r2() -> None:
    found = on_ranks(partial(NumberReport, ["u"], Rows(), N), noise(N, 1), torch.ones(N, 1))
    assert found["figures"]["r2"] is None


VOCABULARY = 7


@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_have_perplexity_and_bits_per_byte(shifted: bool) -> None:
    outputs = noise(N, 6, VOCABULARY)
    targets = (noise(N, 6, seed=7).abs() * 4).long() % VOCABULARY
    targets[::3, 4:] = -100
    sizes = torch.tensor([1.0, 2, 3, 1, 1, 2, 0], dtype=torch.float64)
    make = partial(TokenReport, VOCABULARY, Rows(), sizes=sizes, shifted=shifted)
    found = on_ranks(make, outputs, targets, WORLDS)
    used, aims = (outputs[:, :-1], targets[:, 1:]) if shifted else (outputs, targets)
    losses = torch.nn.functional.cross_entropy(used.double().transpose(1, 2), aims, reduction="none")
    given = aims != -100
    mean, bits = float(losses.sum() / given.sum()), float(losses.sum()) / math.log(2)
    figures = found["figures"]
    assert figures["perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)
    assert figures["bits_per_byte"] == pytest.approx(bits / float(sizes[aims[given]].sum()), rel=1e-12)
    assert figures["tokens"] == int(given.sum())
    top = (used.topk(5).indices == aims[..., None]).any(-1) & given
    assert figures["top_5_accuracy"] == pytest.approx(int(top.sum()) / int(given.sum()), rel=1e-12)
    assert found["positions"] == pytest.approx((losses.sum(0) / given.sum(0)).tolist(), rel=1e-12)
    assert sum(row["share_of_loss"] for row in found["rows"]) == pytest.approx(1)
    means = losses.sum(1) / given.sum(1)
    assert [row["position"] for row in found["worst"]] == means.argsort(descending=True)[:10].tolist()


def test_sizes_of_tokens_are_the_bytes_of_the_text() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = "The quick brown fox — jumps över the lazy dog. " * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    sizes = tokens.sizes({"name": "bpe", "json": tokenizer.to_str()}, 300)
    assert sizes is not None
    assert float(sizes[tokenizer.encode(text).ids].sum()) == len(text.encode())
    assert sizes[tokenizer.token_to_id("<end>")] == 0
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert tokens.sizes({"name": "file", "json": words.to_str()}, 2) is None
    assert tokens.sizes({}, 2) is None


def test_the_bound_of_an_area_holds_where_scores_share_bins() -> None:
    truth, scores = noise(5000, seed=8) > 0, noise(5000, seed=9) * 0.02
    bins = ScoreBins(1)
    bins.update((scores + 0.01 * truth)[:, None], truth[:, None])
    (curve,) = bins.compute(SingleCommunicator())
    roc, precision = curve.roc_area(), curve.average_precision()
    assert roc is not None
    assert precision is not None
    gap = abs(roc.value - sk.roc_auc_score(truth, scores + 0.01 * truth))
    assert 1e-5 < gap <= roc.error < 0.2
    assert abs(precision.value - sk.average_precision_score(truth, scores + 0.01 * truth)) <= precision.error < 0.3


def test_points_of_a_curve_are_those_of_its_thresholds() -> None:
    truth, scores = noise(400, seed=8) > 0, noise(400, seed=9) * 3
    bins = ScoreBins(1)
    bins.update(scores[:, None], truth[:, None])
    points = bins.compute(SingleCommunicator())[0].points()
    assert points is not None
    chosen = torch.sigmoid(scores.double())[None] >= torch.tensor(points["threshold"])[:, None]
    recall, false = chosen[:, truth].double().mean(1), chosen[:, ~truth].double().mean(1)
    assert points["recall"] == pytest.approx(recall.tolist(), rel=1e-12)
    assert points["false_positive_rate"] == pytest.approx(false.tolist(), rel=1e-12)
    assert (points["recall"][-1], points["false_positive_rate"][-1]) == (1, 1)


def test_a_class_without_targets_has_no_area() -> None:
    bins = ScoreBins(1)
    bins.update(noise(9, 1), torch.zeros(9, 1, dtype=torch.bool))
    (curve,) = bins.compute(SingleCommunicator())
    assert curve.roc_area() is curve.average_precision() is curve.points() is None


def test_log_odds_of_certain_classes_are_finite_in_the_bins() -> None:
    found = log_odds(torch.tensor([[100.0, 0.0], [1.0, 0.0]]).double().log_softmax(1))
    assert found[1].tolist() == pytest.approx([1.0, -1.0])
    assert found[0, 0] == math.inf
    assert found[0, 1] == pytest.approx(-100)


def test_a_probability_on_an_edge_is_in_the_lower_bin() -> None:
    made = Calibration()
    made.update(torch.tensor([0.2, 0.2001, 0.0, 1.0], dtype=torch.float64), torch.tensor([True, False, False, True]))
    filled = {round(b["to"] * 15): b["samples"] for b in made.compute(SingleCommunicator())["bins"] if b["samples"]}
    assert filled == {1: 1, 3: 1, 4: 1, 15: 1}


def test_batches_are_the_same_on_any_number_of_ranks() -> None:
    for samples in (1, 7, 203, 1000):
        plan = torch.arange(samples).split(BATCH)
        for size in (1, 2, 3, 7):
            parts = threads.run(size, partial(held_out_part, Rows(samples), None, size=BATCH))
            made = [batch.tolist() for part in parts for batch in part.split(BATCH) if len(batch)]
            assert made == [batch.tolist() for batch in plan]


def test_the_size_of_a_batch_depends_on_the_data_only() -> None:
    images, words = DataSpec((1, 8, 8), 10, "classification"), DataSpec((1024,), 50_000, "language")
    assert [batch_size(images, n) for n in (1, 360, 1024, 10**4, 10**6)] == [8, 8, 32, 256, 256]
    assert batch_size(words, 10**6) == 1


def test_positions_of_damaged_samples_are_left_out() -> None:
    class Damaged(Rows):
        def batch(self, indices: Tensor) -> Any:
            kept = indices[indices % 3 > 0]
            return (kept, kept) if len(kept) else None

    positions = torch.tensor([3, 4, 5, 9, 7])
    whole = Damaged().batch(positions)
    batch = divide(whole)
    assert kept_positions(Damaged(), Batch(batch.inputs, batch.targets, whole, positions)) == [4, 5, 7]


def test_results_are_json() -> None:
    found = measured(SingleCommunicator(), partial(ClassReport, NAMES, Rows()), CLASS_OUTPUTS, CLASS_TARGETS)
    assert json.loads(json.dumps(found)) == found
