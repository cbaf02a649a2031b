"""The table of docs/troubleshooting.md and the tests agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| .* \| `([^`]+)` \| .* \| `([^`]+)::(test_\w+)` \|$", PAGE, re.MULTILINE)


def test_every_row_is_read_and_every_pain_has_one() -> None:
    assert len(ROWS) == len(re.findall(r"^\| \d", PAGE, re.MULTILINE))
    told_below = {15, 20}
    assert {int(number) for number, *_ in ROWS} | told_below == set(range(1, 21))


@pytest.mark.parametrize(("number", "words", "file", "test"), ROWS, ids=lambda text: text[:40])
def test_the_words_of_a_row_are_asserted_by_its_test(number: str, words: str, file: str, test: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert test in functions, f"{number}: no {test} in {file}"
    plain = text.replace("\\", "")
    assert words in plain, f"{number}: {file} does not have '{words}'"
