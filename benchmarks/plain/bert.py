"""Fine-tune a pretrained BERT to classify texts."""

from __future__ import annotations

import csv
from argparse import Namespace
from itertools import islice

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from benchmarks.plain.report import batches, held_out

BATCH = 32
POOL = 50
"""Batches whose texts are sorted by length before they are divided."""


def fine_tune(options: Namespace, longest: int = 128) -> tuple[Tensor, Tensor, list[str], int]:
    """Train on `options.data`, a CSV file of `text` and `label`.

    Return the logits and the classes of held-out texts, the names of the classes, and the steps.
    """
    with options.data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    classes = torch.tensor([names.index(row["label"]) for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=longest)["input_ids"]
    lengths = torch.tensor([len(one) for one in tokens])
    train, test = held_out(len(rows), 0.2, options)

    def batch(chosen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        padded = tokenizer.pad({"input_ids": [tokens[row] for row in chosen.tolist()]}, return_tensors="pt")
        return dict(padded), classes[chosen]

    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-4, fused=True)
    steps = options.limit or options.epochs * -(-len(train) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    done = 0
    while done < steps:
        for chosen in islice(batches(train, lengths, BATCH, pool=POOL), steps - done):
            inputs, targets = batch(chosen)
            loss = model(**inputs, labels=targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
    model.eval()
    order = test[lengths[test].argsort()]
    with torch.inference_mode():
        logits = torch.cat([model(**batch(chosen)[0]).logits for chosen in order.split(BATCH)])
    return logits, classes[order], names, done
