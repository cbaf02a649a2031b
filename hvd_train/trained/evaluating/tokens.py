"""The report of a language model: perplexity, bits per byte, and the loss over positions and tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.compute.metrics.layout import IGNORED, classes_last
from hvd_train.data.batch import Batch
from hvd_train.data.tokenizing.saved import Decode
from hvd_train.trained.evaluating.calibration import Calibration
from hvd_train.trained.evaluating.report import ratio, summed
from hvd_train.trained.evaluating.worst import Row, Worst

TOP = 5
"""A prediction counts for `top_5_accuracy` if the target is among so many."""
PIECE = 2**22
"""Scores that are converted to float64 at once."""
EXCERPT = 80
"""Tokens of a sample that are shown as text."""
LISTED = 20
"""Tokens with a row: those with the largest share of the loss."""


class TokenReport:
    """Sums the negative log-likelihood of the target tokens, in nats.

    With `shifted`, outputs predict the targets of the next position.
    """

    def __init__(
        self,
        vocabulary: int,
        split: Any,
        *,
        sizes: Tensor | None = None,
        decode: Decode | None = None,
        ignored: int = IGNORED,
        shifted: bool = False,
    ) -> None:
        """`sizes` are the bytes of each token (vocabulary,), if they are known."""
        self._sizes, self._decode, self._ignored, self._shifted = sizes, decode, ignored, shifted
        self._of_tokens = torch.zeros(3, vocabulary, dtype=torch.float64)
        """Number, loss and correct predictions of each target token."""
        self._of_positions = torch.zeros(2, 0, dtype=torch.float64)
        """Number and loss of the tokens at each position."""
        self._top = torch.zeros(1, dtype=torch.int64)
        self._calibration, self._worst = Calibration(), Worst(split)

    def update(self, outputs: Any, batch: Batch) -> None:
        found, targets = scores(outputs), batch.targets
        found = classes_last(found, targets)
        if self._shifted:
            found, targets = found[:, :-1], targets[:, 1:]
        targets = targets.reshape(batch.samples, -1).long()
        counted = (targets != self._ignored) & (targets != IGNORED)
        flat, aims = found.reshape(targets.numel(), -1), targets.where(counted, 0).reshape(-1)
        losses, confidence, chosen = self._measured(flat, aims, counted.reshape(-1))
        self._add(losses, chosen, targets, counted)
        self._calibration.update(confidence[counted.reshape(-1)], (chosen == aims)[counted.reshape(-1)])
        self._find_worst(losses.view(targets.shape), chosen.view(targets.shape), targets, counted, batch)

    def compute(self, comm: Communicator) -> dict[str, Any]:
        number, loss, right = of_tokens = summed(comm, self._of_tokens)
        positions = self._summed_positions(comm)
        calibration, total, nats = self._calibration.compute(comm), float(number.sum()), float(loss.sum())
        size = float((number * self._sizes).sum()) if self._sizes is not None else 0
        mean = ratio(nats, total)
        return {
            "kind": "tokens",
            "figures": {
                "perplexity": exponential(mean),
                "bits_per_token": ratio(nats / math.log(2), total),
                "bits_per_byte": ratio(nats / math.log(2), size),
                "accuracy": ratio(float(right.sum()), total),
                f"top_{TOP}_accuracy": ratio(int(summed(comm, self._top)), total),
                "tokens": int(total),
                "bytes": int(size) if self._sizes is not None else None,
                "calibration_error": calibration["error"],
            },
            "rows": self._rows(of_tokens),
            "positions": [ratio(float(nats), float(n)) for n, nats in positions.T],
            "calibration": calibration,
            "worst": self._worst.compute(comm),
        }

    def _measured(self, flat: Tensor, aims: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, confidence and prediction of each position, a piece of the scores at a time."""
        parts = []
        rows = max(1, PIECE // flat.shape[1])
        for scored, targets, counts in zip(flat.split(rows), aims.split(rows), counted.split(rows), strict=True):
            logs = scored.double().log_softmax(-1)
            of_target = logs.gather(1, targets[:, None])
            confidence, chosen = logs.max(1)
            self._top += ((logs > of_target).sum(1) < TOP)[counts].sum().cpu()
            parts.append((-of_target[:, 0], confidence.exp(), chosen))
        losses, confidences, predictions = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(confidences), torch.cat(predictions)

    def _add(self, losses: Tensor, chosen: Tensor, targets: Tensor, counted: Tensor) -> None:
        given = counted.reshape(-1)
        aims = targets.reshape(-1)[given].cpu()
        right = (chosen[given].cpu() == aims).double()
        nats = losses[given].cpu()
        self._of_tokens.index_add_(1, aims, torch.stack([torch.ones_like(nats), nats, right]))
        of_positions = torch.stack([counted.double(), losses.view(targets.shape).where(counted, 0)]).sum(1).cpu()
        length = max(of_positions.shape[1], self._of_positions.shape[1])
        self._of_positions = padded(self._of_positions, length) + padded(of_positions, length)

    def _summed_positions(self, comm: Communicator) -> Tensor:
        length = torch.tensor(self._of_positions.shape[1])
        comm.all_reduce_(length, "max")
        return summed(comm, padded(self._of_positions, int(length)))

    def _find_worst(self, losses: Tensor, chosen: Tensor, targets: Tensor, counted: Tensor, batch: Batch) -> None:
        losses, number = losses.where(counted, 0), counted.sum(1)

        def describe(i: int) -> Row:
            at = int(losses[i].argmax())
            return {
                "text": self._text(targets[i][counted[i]][:EXCERPT].tolist()),
                "token": at,
                "target": self._text([int(targets[i, at])]),
                "prediction": self._text([int(chosen[i, at])]),
                "target_probability": math.exp(-float(losses[i, at])),
            }

        self._worst.update(losses.sum(1) / number.clamp(min=1), batch, describe)

    def _rows(self, of_tokens: Tensor) -> list[Row]:
        number, loss, right = of_tokens
        order = torch.argsort(loss, descending=True, stable=True)[:LISTED].tolist()
        whole = float(loss.sum())
        return [
            {
                "token": self._text([i]),
                "number": int(number[i]),
                "loss": float(loss[i] / number[i]),
                "share_of_loss": ratio(float(loss[i]), whole),
                "accuracy": float(right[i] / number[i]),
            }
            for i in order
            if number[i]
        ]

    def _text(self, tokens: list[int]) -> str:
        return self._decode(tokens) if self._decode else " ".join(map(str, tokens))


def exponential(mean: float | None) -> float | None:
    """Return e**mean, infinity where it is too large, None for None."""
    if mean is None:
        return None
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def padded(values: Tensor, length: int) -> Tensor:
    """Return `values` (rows, n) with zeros up to `length` columns."""
    return torch.nn.functional.pad(values, (0, length - values.shape[1]))


def sizes(facts: Mapping[str, Any], vocabulary: int) -> Tensor | None:
    """Return the bytes of text of each token (vocabulary,) by the description of a tokenizer.

    None if tokens do not stand for bytes, as in vocabularies that change the text. The special
    tokens, such as the end of a document, stand for no byte.
    """
    if facts.get("name") == "bytes":
        return torch.ones(vocabulary, dtype=torch.float64)
    described = json.loads(facts["json"]) if "json" in facts else {}
    if (described.get("decoder") or {}).get("type") != "ByteLevel" or described["model"].get("type") != "BPE":
        return None
    found = torch.zeros(vocabulary, dtype=torch.float64)
    for token, number in described["model"]["vocab"].items():
        found[number] = len(token)
    for added in described["added_tokens"]:
        found[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return found
