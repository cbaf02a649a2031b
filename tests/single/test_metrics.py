"""The metrics of an evaluation: exact over any number of ranks, whatever the layout of outputs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
import torchmetrics.functional as F
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.metrics.accuracy import Accuracy
from hvd_train.compute.metrics.build import build
from hvd_train.compute.metrics.errors import RootMeanSquaredError
from hvd_train.compute.metrics.merge import merge_
from hvd_train.compute.metrics.meter import Meter, snake_case
from hvd_train.config import torchmetrics_source
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import TrainSection
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.batch import Batch, divide
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.state import checkpoint_folder
from hvd_train.state.checkpoint_folder import Best
from hvd_train.training import checkpoint, objective
from hvd_train.training.best import BestCheckpoint
from hvd_train.training.evaluation import held_out_part
from hvd_train.training.loop import Trainer
from tests.bodies import training as body
from tests.engines import threads

pytestmark = pytest.mark.filterwarnings("ignore")

N = 23
"""Samples of an evaluation: no multiple of a number of ranks or of the batch size."""
BATCH = 4
WORLDS = (2, 3, 7)
EMPTY = 17
"""Ranks of which some have no samples."""
ROWS = torch.arange(N)
CLASSES, LABELS, VOCABULARY, LENGTH = 4, 3, 11, 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def padded(targets: Tensor) -> Tensor:
    """Return `targets` with other numbers of padding positions in each sample."""
    return torch.where(torch.arange(targets.shape[1]) < 1 + ROWS[:, None] % targets.shape[1], targets, -100)


CLASS = DataSpec((8,), CLASSES, "classification")
NUMBER = DataSpec((8,), 1, "regression")
LANGUAGE = DataSpec((LENGTH,), VOCABULARY, "language")
OTHER = DataSpec((), 0, "other")


def decoded(outputs: Tensor, batch: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Return texts of one word for each of `VOCABULARY`, for metrics that compare one text with one."""
    return words(outputs.argmax(-1)), words(batch["labels"])


def references(outputs: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Return texts for metrics that compare a text with several references."""
    return {"preds": words(outputs.argmax(-1)), "target": [[text] for text in words(batch["labels"])]}


def words(tokens: Tensor) -> list[str]:
    return [" ".join("abcdefghijk"[t] * 2 for t in row) for row in tokens.tolist()]


def section(yaml: dict[str, Any] | str, **train: Any) -> TrainSection:
    with body.ONE_AT_A_TIME:
        return read_section(TrainSection, Document({"metrics": [yaml], **train}, "test"))


def meter(yaml: dict[str, Any] | str, spec: DataSpec, **train: Any) -> Meter:
    return build(section(yaml, **train), spec, torch.device("cpu"))[-1]


def evaluate(comm: Communicator, made: Meter, outputs: Tensor, whole: Any) -> dict[str, Any]:
    """Measure this rank's part of the samples, a batch at a time."""
    made.reset()
    for indices in held_out_part(outputs, None, comm).split(BATCH):
        if len(indices):
            made.update(outputs[indices], batch(whole, indices))
    return made.compute(comm)


def batch(whole: Any, indices: Tensor) -> Batch:
    if isinstance(whole, dict):
        return divide({name: value[indices] for name, value in whole.items()})
    return divide(tuple(value[indices] for value in whole))


IMAGE, TOKENS = noise(N, 8), noise(N, LENGTH, VOCABULARY)
LOGITS, LABEL = noise(N, CLASSES), integers(CLASSES, N)
MASKS, PIXELS = noise(N, 3, 3, CLASSES), integers(CLASSES, N, 3, 3)
HITS = integers(2, N, LABELS)
COLUMN, AIM = noise(N, 1), noise(N, 1, seed=2)
DIFFERENCE = (COLUMN.double() - AIM.double()).abs()[:, 0]
TEXT = integers(VOCABULARY, N, LENGTH)
QUERIES = {"x": IMAGE, "target": integers(2, N), "indexes": ROWS % 5}
P, PL, PB = LOGITS.double().softmax(-1), noise(N, LABELS).double().sigmoid(), COLUMN.double().sigmoid()[:, 0]
FLAT = PIXELS.flatten()
PM = MASKS.double().softmax(-1).reshape(-1, CLASSES)
HYPOTHESES, REFERENCES = words(TOKENS.argmax(-1)), words(TEXT)
NESTED = [[text] for text in REFERENCES]
PADDED, COUNTED = padded(TEXT), padded(TEXT) != -100
"""Token targets with padding."""
M = {"task": "multiclass", "num_classes": CLASSES}
MINE = "tests.single.test_metrics"

EXACT: dict[str, tuple[Any, DataSpec, Tensor, Any, Any]] = {
    # The metric, the data, outputs, batch, and the value of one call for all samples.
    "f1": ("F1Score", CLASS, LOGITS, (IMAGE, LABEL), F.f1_score(P, LABEL, **M)),
    "f1 a class": (
        {"name": "F1Score", "average": "none"}, CLASS, LOGITS, (IMAGE, LABEL), F.f1_score(P, LABEL, average="none", **M)
    ),
    "f1 of pixels": (
        {"name": "F1Score", "average": "macro"}, CLASS, MASKS, (IMAGE, PIXELS), F.f1_score(PM, FLAT, average="macro", **M)
    ),
    "f1 of pixels, classes second": (
        {"name": "F1Score", "average": "macro"},
        CLASS, MASKS.movedim(-1, 1), (IMAGE, PIXELS), F.f1_score(PM, FLAT, average="macro", **M),
    ),
    "exact match": ("ExactMatch", CLASS, MASKS, (IMAGE, PIXELS), F.exact_match(MASKS.movedim(-1, 1), PIXELS, **M)),
    "top 2": (
        {"name": "Accuracy", "top_k": 2}, CLASS, LOGITS, (IMAGE, LABEL), F.accuracy(P, LABEL, top_k=2, average="micro", **M)
    ),
    "auroc": ("AUROC", CLASS, LOGITS, (IMAGE, LABEL), F.auroc(P, LABEL, **M)),
    "auroc, binned": (
        {"name": "AUROC", "thresholds": 7}, CLASS, LOGITS, (IMAGE, LABEL), F.auroc(P, LABEL, thresholds=7, **M)
    ),
    "average precision": ("AveragePrecision", CLASS, LOGITS, (IMAGE, LABEL), F.average_precision(P, LABEL, **M)),
    "confusion matrix": ("ConfusionMatrix", CLASS, LOGITS, (IMAGE, LABEL), F.confusion_matrix(P, LABEL, **M)),
    "calibration": ("CalibrationError", CLASS, LOGITS, (IMAGE, LABEL), F.calibration_error(P, LABEL, **M)),
    "matthews": ("MatthewsCorrCoef", CLASS, LOGITS, (IMAGE, LABEL), F.matthews_corrcoef(P, LABEL, **M)),
    "mean iou": (
        "MeanIoU", CLASS, MASKS, (IMAGE, PIXELS),
        None,
    ),
    "binary": (
        {"name": "AUROC", "task": "binary"}, NUMBER, COLUMN, (IMAGE, HITS[:, 0]), F.auroc(PB, HITS[:, 0], "binary")
    ),
    "binary of two logits": (
        {"name": "F1Score", "task": "binary"}, CLASS, LOGITS[:, :2], (IMAGE, HITS[:, 0]),
        F.f1_score(LOGITS[:, :2].argmax(-1), HITS[:, 0], "binary"),
    ),
    "multi-label": (
        {"name": "AveragePrecision", "task": "multilabel", "num_labels": LABELS},
        OTHER, noise(N, LABELS), {"x": IMAGE, "labels": HITS.float()},
        F.average_precision(PL, HITS, task="multilabel", num_labels=LABELS),
    ),
    "mse": ("MeanSquaredError", NUMBER, COLUMN, (IMAGE, AIM), F.mean_squared_error(COLUMN.double(), AIM.double())),
    "rmse": (
        {"name": "MeanSquaredError", "squared": False}, NUMBER, COLUMN, (IMAGE, AIM[:, 0]),
        F.mean_squared_error(COLUMN.double(), AIM.double(), squared=False),
    ),
    "mae": ("MeanAbsoluteError", NUMBER, COLUMN, (IMAGE, AIM), DIFFERENCE.mean()),
    "r2": ("R2Score", NUMBER, COLUMN, (IMAGE, AIM), F.r2_score(COLUMN.double(), AIM.double())),
    "r2 of several": (
        {"name": "R2Score", "multioutput": "raw_values"}, DataSpec((8,), LABELS, "regression"),
        noise(N, LABELS), (IMAGE, noise(N, LABELS, seed=3)),
        F.r2_score(noise(N, LABELS).double(), noise(N, LABELS, seed=3).double(), multioutput="raw_values"),
    ),
    "pearson": ("PearsonCorrCoef", NUMBER, COLUMN, (IMAGE, AIM), torch.corrcoef(torch.cat([COLUMN, AIM], 1).double().T)[0, 1]),
    "spearman": (
        "SpearmanCorrCoef", NUMBER, COLUMN, (IMAGE, AIM), F.spearman_corrcoef(COLUMN.double()[:, 0], AIM.double()[:, 0])
    ),
    "kendall": (
        "KendallRankCorrCoef", NUMBER, COLUMN, (IMAGE, AIM), F.kendall_rank_corrcoef(COLUMN.double()[:, 0], AIM.double()[:, 0])
    ),
    "psnr": (
        {"name": "PeakSignalNoiseRatio", "data_range": 4.0}, OTHER, noise(N, 1, 4, 4), (noise(N, 1, 4, 4, seed=4),) * 2,
        F.peak_signal_noise_ratio(noise(N, 1, 4, 4).double(), noise(N, 1, 4, 4, seed=4).double(), data_range=4.0),
    ),
    "perplexity": (
        "Perplexity", LANGUAGE, TOKENS, {"x": IMAGE, "labels": PADDED},
        torch.nn.functional.cross_entropy(TOKENS[COUNTED].double(), PADDED[COUNTED]).exp(),
    ),
    "f1 of tokens": (
        {"name": "F1Score", "average": "macro"}, LANGUAGE, TOKENS, {"x": IMAGE, "labels": PADDED},
        F.f1_score(TOKENS[COUNTED], PADDED[COUNTED], task="multiclass", num_classes=VOCABULARY, average="macro"),
    ),
    "auroc of tokens": (
        "AUROC", LANGUAGE, TOKENS, {"x": IMAGE, "labels": PADDED},
        F.auroc(TOKENS[COUNTED].double().softmax(-1), PADDED[COUNTED], task="multiclass", num_classes=VOCABULARY),
    ),
    "bleu": (
        {"name": "BLEUScore", "n_gram": 1, "prepare": f"{MINE}:references"}, LANGUAGE, TOKENS, {"x": IMAGE, "labels": TEXT},
        F.bleu_score(HYPOTHESES, NESTED, n_gram=1),
    ),
    "chrf": (
        {"name": "CHRFScore", "prepare": f"{MINE}:references"}, LANGUAGE, TOKENS, {"x": IMAGE, "labels": TEXT},
        F.chrf_score(HYPOTHESES, NESTED),
    ),
    "word errors": (
        {"name": "WordErrorRate", "prepare": f"{MINE}:decoded"}, LANGUAGE, TOKENS, {"x": IMAGE, "labels": TEXT},
        F.word_error_rate(HYPOTHESES, REFERENCES),
    ),
    "recall": ({"name": "RetrievalRecall", "top_k": 2}, OTHER, COLUMN, QUERIES, None),
    "ndcg": ("RetrievalNormalizedDCG", OTHER, COLUMN, QUERIES, None),
    "ndcg of lists": (
        "RetrievalNormalizedDCG", OTHER, noise(N, 6), {"x": IMAGE, "target": integers(3, N, 6), "indexes": ROWS},
        torch.stack(list(map(F.retrieval_normalized_dcg, noise(N, 6), integers(3, N, 6)))).double().mean(),
    ),
    "function": (
        {"target": f"{MINE}:distance", "power": 2}, NUMBER, COLUMN, (IMAGE, AIM),
        DIFFERENCE.square().mean(),
    ),
    "function of the batch": ({"target": f"{MINE}:largest"}, OTHER, COLUMN, QUERIES, COLUMN.double().sum() / N),
    "metric of the user": ({"target": f"{MINE}:Largest"}, OTHER, COLUMN, (IMAGE, AIM), DIFFERENCE.max()),
}  # fmt: skip


def distance(outputs: Tensor, targets: Tensor, *, power: int = 1) -> Tensor:
    return ((outputs.double() - targets.double()).abs() ** power).mean()


def largest(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return a value for each sample."""
    assert "indexes" in batch
    return outputs[:, 0].double()


class Largest(torchmetrics.Metric):
    """The largest error, and the order in which errors came."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("most", torch.tensor(0.0), dist_reduce_fx="max")
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        errors = (outputs - targets).abs()
        self.most = torch.maximum(self.most, errors.max())
        self.seen.append(errors)

    def compute(self) -> Tensor:
        assert torch.equal(torch.cat(self.seen), DIFFERENCE), "the order of samples is lost"
        return self.most


@pytest.mark.parametrize("case", EXACT)
def test_metric_is_equal_on_any_number_of_ranks(case: str) -> None:
    yaml, spec, outputs, whole, expected = EXACT[case]
    train = section(yaml)

    def body(comm: Communicator) -> dict[str, Any]:
        return evaluate(comm, build(train, spec, torch.device("cpu"))[-1], outputs, whole)

    (one,) = threads.run(1, body)
    (value,) = one.values()
    if expected is not None:
        torch.testing.assert_close(torch.tensor(value).double(), expected.double(), rtol=1e-6, atol=1e-7)
    for size in WORLDS:
        for found in threads.run(size, body):
            assert found.keys() == one.keys()
            torch.testing.assert_close(
                *(torch.tensor(v[next(iter(one))]).double() for v in (found, one)), rtol=1e-9, atol=1e-12
            )


def test_ranks_without_samples_change_nothing() -> None:
    for yaml in ("PearsonCorrCoef", "R2Score", "SpearmanCorrCoef", "NormalizedRootMeanSquaredError"):

        def body(comm: Communicator, yaml: str = yaml) -> dict[str, Any]:
            return evaluate(comm, meter(yaml, NUMBER), COLUMN[:9], (IMAGE, AIM))

        (one,) = threads.run(1, body)
        for found in threads.run(EMPTY, body):
            assert found == {name: pytest.approx(value, rel=1e-9) for name, value in one.items()}


def test_means_of_ranks_count_by_their_samples() -> None:
    metric = Mean()
    metric.update(torch.tensor(0.0), torch.tensor(0.0))
    merge_(metric, [{"": {"mean": torch.tensor(v)}} for v in (1.0, 4.0, 9.0)], [3, 1, 0])
    assert metric.compute() == 1.75


class Mean(torchmetrics.Metric):
    """Has a state whose reduction is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.mean = (outputs - targets).mean()

    def compute(self) -> Tensor:
        return self.mean


def test_logits_in_the_unit_interval_are_logits() -> None:
    """Torchmetrics would take the first batch for probabilities and the second one for logits."""
    outputs = torch.tensor([[0.2], [0.4], [0.6], [0.8], [-3.0], [2.0]])
    made = meter({"name": "CalibrationError", "task": "binary"}, NUMBER)
    for indices in (torch.arange(3), torch.arange(3, 6)):
        made.update(outputs[indices], divide((outputs[indices], torch.tensor([0, 1, 0, 1, 1, 0])[indices])))
    (value,) = threads.run(1, made.compute)[0].values()
    assert value == pytest.approx(
        float(F.calibration_error(outputs.sigmoid()[:, 0], torch.tensor([0, 1, 0, 1, 1, 0]), "binary"))
    )


def test_accuracy_counts_positions_and_has_no_value_without_classes() -> None:
    outputs = torch.eye(3)[torch.tensor([[0, 1], [2, 2], [1, 0]])]
    targets = torch.tensor([[0, 1], [2, 0], [-100, 0]])

    def body(comm: Communicator, aim: Any) -> dict[str, Any]:
        made = Accuracy()
        own = ROWS[:3].tensor_split(comm.size)[comm.rank]
        if len(own):
            made.update({"logits": outputs[own]}, Batch(None, aim[own], (outputs[own],)))
        return made.compute(comm)

    for size in (1, 2, 4):
        assert threads.run(size, lambda comm: body(comm, targets)) == [{"accuracy": 4 / 5}] * size
        assert threads.run(size, lambda comm: body(comm, targets.float())) == [{}] * size
        assert threads.run(size, lambda comm: body(comm, torch.ones(3, 2, 3))) == [{}] * size


def test_error_of_numbers_is_that_of_all_ranks_and_has_no_value_for_other_shapes() -> None:
    outputs, targets = torch.arange(6.0).view(3, 2), torch.tensor([[0.0, 2], [2, 0], [4, 5]])

    def body(comm: Communicator, aim: Any) -> dict[str, Any]:
        made = RootMeanSquaredError()
        own = ROWS[:3].tensor_split(comm.size)[comm.rank]
        if len(own):
            made.update({"logits": outputs[own]}, Batch(None, aim[own], (outputs[own],)))
        return made.compute(comm)

    for size in (1, 2, 4):
        assert threads.run(size, lambda comm: body(comm, targets)) == [{"rmse": pytest.approx((10 / 6) ** 0.5)}] * size
        assert threads.run(size, lambda comm: body(comm, targets[:, :1])) == [{}] * size


@pytest.mark.parametrize(
    ("yaml", "spec", "message"),
    [
        ({"name": "F1Score", "average": "none", "top_k": 9}, CLASS, "F1Score: .*top_k"),
        ("F1Score", NUMBER, "F1Score: give 'task: binary, multiclass or multilabel'"),
        ({"name": "AUROC", "task": "multilabel"}, OTHER, "AUROC: give 'num_labels', which the data does not tell"),
        ("WordErrorRate", OTHER, "WordErrorRate compares texts; give it 'prepare: package.module:callable'"),
        ({"name": "F1Score", "key": "loss_1"}, CLASS, "'loss_1' is a name of the loss"),
        ("F1Scor", CLASS, r"metrics\.0\.name: no 'F1Scor' here; did you mean 'F1Score'"),
        ({"name": "AUROC", "average": "makro"}, CLASS, "expected 'macro', 'weighted' or 'none', got 'makro'"),
        (
            {"name": "BLEUScore", "prepare": "nowhere:texts"},
            OTHER,
            r"prepare: target 'nowhere:texts': no module 'nowhere'",
        ),
        ({"target": f"{MINE}:distance", "powr": 2}, NUMBER, "powr: unknown key; did you mean 'power'"),
    ],
)
def test_metric_that_does_not_fit_is_refused_before_the_start(yaml: Any, spec: DataSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        meter(yaml, spec)


@pytest.mark.parametrize(("targets", "kind"), [(HITS.float(), "Multilabel"), (AIM, "Binary"), (AIM[:, 0], "Binary")])
def test_task_of_unknown_outputs_follows_from_targets_and_loss(targets: Tensor, kind: str) -> None:
    made = build(section("F1Score", loss="bce"), OTHER, torch.device("cpu"), targets)[-1]
    assert type(made._metric).__name__ == f"{kind}F1Score"


def test_two_metrics_of_one_name_need_a_key() -> None:
    metrics = [{"name": "Accuracy"}, {"name": "Accuracy", "top_k": 2}]
    with pytest.raises(UserError, match="two metrics are called 'accuracy'; give one of them another name with 'key'"):
        build(read_section(TrainSection, Document({"metrics": metrics}, "test")), CLASS, torch.device("cpu"))
    metrics[1]["key"] = "top_2"
    made = build(read_section(TrainSection, Document({"metrics": metrics}, "test")), CLASS, torch.device("cpu"))
    assert [m.name for m in made] == ["accuracy", "top_2"]


def test_batch_that_does_not_fit_is_explained() -> None:
    made = meter({"name": "RetrievalRecall"}, OTHER)
    with pytest.raises(UserError, match=r"retrieval_recall: its update takes 'indexes', which the batch does not have"):
        made.update(COLUMN, divide({"x": IMAGE, "target": LABEL, "index": LABEL}))
    made = meter({"name": "F1Score", "task": "binary"}, NUMBER)
    with pytest.raises(UserError, match=r"f1_score: its targets are whole numbers.*outputs float32 \[23, 1\]"):
        made.update(COLUMN, divide((IMAGE, AIM)))


def test_failure_of_one_rank_is_the_failure_of_all() -> None:
    def body(comm: Communicator) -> str:
        made = meter({"target": f"{MINE}:Unsaved"}, NUMBER)
        with pytest.raises(UserError) as refused:
            evaluate(comm, made, COLUMN, (IMAGE, AIM))
        return str(refused.value)

    for text in threads.run(3, body):
        assert "unsaved holds a object, expected tensors, numbers and texts" in text


class Unsaved(torchmetrics.Metric):
    """Keeps what no other rank can receive."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.kept.append(object())

    def compute(self) -> Tensor:
        return torch.tensor(0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("F1Score", "f1_score"), ("AUROC", "auroc"), ("RetrievalNormalizedDCG", "retrieval_normalized_dcg"), ("SQuAD", "squad"),
     ("MeanIoU", "mean_iou"), ("R2Score", "r2_score"), ("KLDivergence", "kl_divergence"), ("TheilsU", "theils_u")],
)  # fmt: skip
def test_names_of_values(name: str, expected: str) -> None:
    assert snake_case(name) == expected


DIRECTIONS = {"loss": False, "accuracy": True, "f1_score": True, "confusion_matrix": None, "rouge_score": True}


@pytest.mark.parametrize(
    ("wanted", "mode", "name", "value"),
    [
        ("loss", None, "loss", -2.0),
        ("F1Score", None, "f1_score", 0.5),
        ("long/Loss", None, "long/loss", -3.0),
        ("f1_score", "min", "f1_score", -0.5),
        ("confusion_matrix[1][0]", "max", "confusion_matrix[1][0]", 7.0),
        ("rouge_score_rouge1", None, "rouge_score_rouge1", 0.25),
        ("loss_kl", None, "loss_kl", -0.125),
    ],
)
def test_objective(wanted: str, mode: Any, name: str, value: float) -> None:
    metrics = {"loss": 2.0, "long/loss": 3.0, "loss_kl": 0.125, "f1_score": 0.5, "rouge_score_rouge1": 0.25}
    found = objective.find("train.early_stop.metric", wanted, mode, DIRECTIONS, ["long"])
    assert (found.name, found.value({**metrics, "confusion_matrix": [[5, 6], [7, 8]]})) == (name, value)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("acuracy", "x.metric: no metric 'acuracy'; did you mean 'accuracy'"),
        ("short/loss", r"x.metric: no evaluation split 'short' \(choices: long\)"),
        ("confusion_matrix[0][0]", "'confusion_matrix\\[0\\]\\[0\\]' does not say .* give the mode, min or max"),
    ],
)
def test_unknown_objective_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective.find("x.metric", wanted, None, DIRECTIONS, ["long"])


def test_objective_without_a_number_is_refused() -> None:
    found = objective.find("x.metric", "confusion_matrix", "max", DIRECTIONS, [])
    with pytest.raises(UserError, match=r"has several values; name one, such as confusion_matrix\[0\]"):
        found.value({"confusion_matrix": [[1]]})
    with pytest.raises(UserError, match="no metric 'confusion_matrix' in the evaluation"):
        found.value({"loss": 1.0})
    with pytest.raises(UserError, match=r"names no value of confusion_matrix"):
        objective.find("x.metric", "confusion_matrix[1]", "max", DIRECTIONS, []).value({"confusion_matrix": [1]})


@dataclasses.dataclass
class Lengths:
    """A split that knows the lengths of its samples."""

    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)


@pytest.mark.parametrize(
    ("samples", "most", "expected"),
    [(10, None, range(10)), (10, 4, [0, 2, 5, 7]), (3, 9, range(3)), (1, None, [0]), (0, None, [])],
)
def test_parts_of_an_evaluation_are_the_same_samples_on_any_number_of_ranks(
    samples: int, most: int | None, expected: Sequence[int]
) -> None:
    for size in (1, 2, 3, 7):
        parts = threads.run(size, lambda comm: held_out_part(range(samples), most, comm).tolist())
        assert [i for part in parts for i in part] == list(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_of_an_evaluation_have_equal_lengths() -> None:
    split = Lengths(torch.tensor([1, 8, 1, 2, 2, 1, 1]))
    assert threads.run(2, lambda comm: held_out_part(split, None, comm).tolist()) == [[0, 2, 5, 6, 3, 4], [1]]


def splits() -> Dataset:
    """Return a task with two evaluation splits."""
    data = body.classification(40)
    few = TensorSplit(data.test.x[:5], data.test.y[:5], data.test.y[:5])
    return dataclasses.replace(data, others={"few": few})


def trainer(comm: Communicator, folder: Path | None = None, **sections: Any) -> Trainer:
    train = {"metrics": ["AUROC", "ConfusionMatrix"], "steps": 6, "epochs": None, "eval_every": 2}
    data = {"target": f"{MINE}:splits", "batch_size": 4}
    config = body.configuration(**{**sections, "data": data, "train": {**train, **sections.get("train", {})}})
    return body.trainer(comm, config, checkpoints=folder)


def run(comm: Communicator, folder: Path | None = None, **sections: Any) -> Trainer:
    job = trainer(comm, folder, **sections)
    job.run()
    return job


def test_evaluation_of_several_splits_is_equal_on_any_number_of_ranks() -> None:
    train = {"eval_samples": 9, "early_stop": {"metric": "few/AUROC", "patience": 9}}
    one, *others = (threads.run(size, lambda comm: run(comm, train=train, optimizer={"lr": 0.0})) for size in (1, 2, 3))
    metrics = one[0].evaluation.metrics
    assert set(metrics) == {
        f"{split}{n}" for split in ("", "few/") for n in ("loss", "accuracy", "auroc", "confusion_matrix")
    }
    assert [sum(map(sum, metrics[f"{split}confusion_matrix"])) for split in ("", "few/")] == [9, 5]
    for job in itertools.chain(*others):
        assert job.evaluation.metrics == {
            name: value if isinstance(value, list) else pytest.approx(value, rel=1e-9)
            for name, value in metrics.items()
        }
        assert job.progress.best == pytest.approx(one[0].progress.best, rel=1e-9)


def test_best_checkpoint_is_kept_besides_the_newest_and_is_resumed(tmp_path: Path) -> None:
    """Without a learning rate, no evaluation is better than the first one."""
    section = {"every": 1, "keep": 2, "best": {"metric": "confusion_matrix[0][0]", "mode": "max"}}
    jobs = threads.run(2, lambda comm: run(comm, tmp_path, checkpoint=section, optimizer={"lr": 0.0}))
    assert {job.best.mark for job in jobs} == {checkpoint_folder.read_best(tmp_path)}
    assert [f.name for f in checkpoint_folder.folders(tmp_path)] == ["step-00000006", "step-00000005", "step-00000002"]
    assert json.loads((tmp_path / "best.json").read_text())["folder"] == "step-00000002"

    def resumed(comm: Communicator, source: Path) -> Trainer:
        job = trainer(comm, tmp_path, checkpoint=section)
        job.restore(checkpoint.load(source, comm, print), lambda text: None)
        job._settle_resumed()
        return job

    assert [job.best.mark.step for job in threads.run(2, lambda comm: resumed(comm, tmp_path / "step-00000006"))] == [
        2,
        2,
    ]
    assert [job.best.mark.step for job in threads.run(2, lambda comm: resumed(comm, tmp_path / "step-00000002"))] == [
        2,
        2,
    ]


def test_mark_of_a_checkpoint_that_is_gone_is_dropped(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(
            checkpoint.Snapshot({}, {}, {}), tmp_path, step, 9, SingleCommunicator(), Best(step, "loss", 1.5 / step)
        )
    assert checkpoint_folder.read_best(tmp_path) == Best(2, "loss", 0.75)
    checkpoint.abandon_others(tmp_path, tmp_path / "step-00000001")
    assert not (tmp_path / "best.json").exists()
    (tmp_path / "best.json").write_text('{"step": "x"}')
    assert checkpoint_folder.read_best(tmp_path) is None


def test_later_evaluation_of_the_same_step_replaces_the_best() -> None:
    best = BestCheckpoint(objective.find("x", "loss", None, DIRECTIONS, []))
    evaluations = ((3.0, 1), (2.0, 2), (math.nan, 3), (2.5, 3), (2.0, 4), (4.0, 2))
    marks = [best.consider({"loss": value}, step) for value, step in evaluations]
    assert marks == [Best(1, "loss", 3.0), Best(2, "loss", 2.0), None, None, None, Best(2, "loss", 4.0)]


def test_missing_torchmetrics_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchmetrics_source, "find_spec", lambda name: None)
    torchmetrics_source.modules.cache_clear()
    try:
        with pytest.raises(UserError, match=r"torchmetrics, which is not installed; .*pip install -e '.\[metrics\]'"):
            section("F1Score")
    finally:
        torchmetrics_source.modules.cache_clear()
