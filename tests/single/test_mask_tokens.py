"""The transform `mask_tokens`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.data import samples
from hvd_train.data.load import load
from hvd_train.data.spec import DataSpec
from hvd_train.data.transform import TransformContext
from hvd_train.errors import UserError

SPEC = DataSpec((8,), 3, "classification", vocabularies={"input_ids": 50})
ADDED = [{"id": 0, "content": "[PAD]", "special": True}, {"id": 4, "content": "[MASK]", "special": True}]
TOKENIZER = {
    "tokenizer": {"json": json.dumps({"added_tokens": [*ADDED, {"id": 9, "content": "new", "special": False}]})}
}


def transform(spec: DataSpec = SPEC, preprocessing: Any = TOKENIZER, label: str | None = None, **options: Any) -> Any:
    context = TransformContext(spec, 0, label, preprocessing)
    return plugins.create("hvd_train.data.transforms", "mask_tokens", context, **options)


def masked(sample: Any, made: Any = None) -> Any:
    return (made or transform()).sample(sample, torch.Generator().manual_seed(0))


def test_four_fifths_become_the_mask_and_a_tenth_random_tokens() -> None:
    tokens = torch.randint(10, 50, (40_000,), generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    found = masked({"input_ids": tokens, "labels": 2})
    targets, after = found["labels"], found["input_ids"]
    chosen = targets != -100
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(after[~chosen], tokens[~chosen])

    assert torch.equal(torch.get_rng_state(), state)

    def share(where: Tensor) -> float:
        return float(where[chosen].double().mean())

    assert float(chosen.double().mean()) == pytest.approx(0.15, abs=0.01)
    assert share(after == 4) == pytest.approx(0.8 + 0.1 / 50, abs=0.02)
    assert share(after == tokens) == pytest.approx(0.1 + 0.1 / 50, abs=0.02)


def test_special_tokens_and_padding_are_never_chosen() -> None:
    tokens = torch.tensor([0, 4, 9, 20] * 500)
    mask = torch.tensor([1, 1, 1, 0] * 500)
    found = masked({"input_ids": tokens.numpy(), "attention_mask": mask}, transform(probability=1.0))
    assert (found["labels"] != -100).tolist() == [False, False, True, False] * 500
    assert found["attention_mask"] is mask


def test_targets_of_the_samples_are_dropped() -> None:
    assert set(masked({"input_ids": torch.arange(8), "y": 1}, transform(label="y"))) == {"input_ids", "y"}
    assert set(masked({"input_ids": torch.arange(8), "label": 1})) == {"input_ids", "labels"}
    language = transform(DataSpec((8,), 50, "language"), {}, mask=1)
    assert set(masked((torch.arange(8), torch.arange(8)), language)) == {"input_ids", "labels"}


def test_masks_differ_by_epoch_and_held_out_masks_do_not() -> None:
    values = {
        "model": "transformer",
        "data": {
            "target": "tests.bodies.parallelism:language",
            "transforms": [{"name": "mask_tokens", "mask": 1, "probability": 0.5}],
        },
    }
    data = load(resolve(Document(values, "test")).data, seed=3)
    rows = torch.arange(9)

    def tokens(split: Any, epoch: int) -> list[list[int]]:
        found: Tensor = samples.at(split, epoch).batch(rows)["input_ids"]
        return found.tolist()  # type: ignore[no-any-return]

    assert tokens(data.train, 1) == tokens(data.train, 1) != tokens(data.train, 2)
    assert data.test.batch(rows)["input_ids"].tolist() == data.test.batch(rows)["input_ids"].tolist()
    assert (data.test.batch(rows)["labels"] != -100).any()
    two = samples.at(data.train, 1).batch(rows[4:6])["input_ids"].tolist()
    assert two == tokens(data.train, 1)[4:6], "a mask belongs to a sample, not to its batch"


def test_what_it_does_not_take() -> None:
    def refusal(*arguments: Any, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            transform(*arguments, **options)
        return str(caught.value)

    assert "the tokenizer has no [MASK] or <mask>; give 'mask'" in refusal(preprocessing={})
    assert "mask_tokens.mask: 50, expected a token below 50" in refusal(mask=50)
    assert "needs tokens" in refusal(DataSpec((8,), 3, "classification"))
    with pytest.raises(UserError, match="expected tokens, or a dict with 'input_ids'"):
        masked({"x": torch.ones(3)})
    with pytest.raises(UserError, match="expected tokens, or a dict with 'input_ids'"):
        masked({"input_ids": torch.ones(3)})
