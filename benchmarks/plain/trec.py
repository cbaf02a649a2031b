"""Questions in six classes (TREC) with a fine-tuned BERT: accuracy and macro F1."""

from __future__ import annotations

import torch

from benchmarks.plain.bert import fine_tune
from benchmarks.plain.report import arguments, report


def main() -> None:
    logits, classes, names, steps = fine_tune(arguments(__doc__, epochs=3))
    guessed = logits.argmax(1)
    f1 = []
    for number in range(len(names)):
        mine, theirs = guessed == number, classes == number
        f1.append(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()).clamp(min=1))
    report({"accuracy": (guessed == classes).double().mean().item(), "f1": torch.stack(f1).mean().item()}, steps)


if __name__ == "__main__":
    main()
