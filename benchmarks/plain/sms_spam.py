"""Spam among text messages with a fine-tuned BERT: F1 of the spam, and the area under the ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.plain.bert import fine_tune
from benchmarks.plain.report import arguments, report


def main() -> None:
    logits, classes, names, steps = fine_tune(arguments(__doc__, epochs=2))
    spam = classes == names.index("spam")
    scores = logits[:, names.index("spam")] - logits[:, names.index("ham")]
    f1 = 2 * ((scores > 0) & spam).sum() / ((scores > 0).sum() + spam.sum())
    report({"f1": f1.item(), "auroc": auroc(scores, spam)}, steps)


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Return the share of pairs of a positive and a negative sample in which the positive one scores higher."""
    ordered, where = scores.sort().values, scores[positive]
    ranks = (torch.searchsorted(ordered, where) + torch.searchsorted(ordered, where, right=True) + 1) / 2
    many, few = int(positive.sum()), int((~positive).sum())
    return ((ranks.double().sum() - many * (many + 1) / 2) / (many * few)).item()


if __name__ == "__main__":
    main()
