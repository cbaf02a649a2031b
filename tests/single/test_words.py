"""A configuration of any length reaches the ranks, in one word or in variables."""

from __future__ import annotations

import json
import random

import pytest

from hvd_train.config import words
from hvd_train.errors import UserError


def document(weights: int) -> str:
    """Return a configuration with `count` different class weights."""
    values = random.Random(0)
    train = {"weights": [values.random() for _ in range(weights)]}
    return json.dumps({"config": {"train": train, "data": "digits"}, "launch": {}})


@pytest.mark.parametrize("weights", [0, 4000, 6000, 15_000, 100_000])
def test_a_document_comes_back_from_words_that_a_system_takes(weights: int) -> None:
    text = document(weights)
    word, variables = words.split(text)
    assert words.join(word, variables) == text
    assert (word == text) == (len(text) <= words.LONGEST) == (not variables)
    assert all(len(f"{name}={value}") < 2**17 for name, value in variables.items())


def test_what_is_too_long_for_an_environment_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^the configuration has 4\.\d MB, compressed 2\.\d MB, but ranks accept at most 1\.5 MB; "
    ):
        words.split(document(200_000))
