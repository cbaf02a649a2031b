from __future__ import annotations

from pathlib import Path

import pytest

from cli.launch import env_file
from hvd_train.errors import UserError


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("export A = two words ", "two words"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=x # why", "x"),
        ("A=x#y", "x#y"),
        ("A=#fff", "#fff"),
        ("A='$HOME # \\n'", "$HOME # \\n"),
        ('A="a # b\\n\\"c\\" \\\\ $HOME" # why', 'a # b\n"c" \\ $HOME'),
        ("A=it's", "it's"),
        ("A=`id` $(id) ${B}", "`id` $(id) ${B}"),
        ("A=b=c", "b=c"),
    ],
)
def test_a_line(line: str, value: str) -> None:
    assert env_file.parse(f"# first\n\nB=2\n{line}\r\n", "f") == {"B": "2", "A": value}


@pytest.mark.parametrize("line", ["A", "A B=1", "1A=1", "=1", "A='x", 'A="x', "A='x' y", "A-B=1"])
def test_a_line_that_is_none_is_named_without_its_value(line: str) -> None:
    with pytest.raises(UserError, match=r"^\.env:2: '.*' is not a variable; expected KEY=VALUE"):
        env_file.parse(f"B=1\n{line}\n", ".env")


def test_a_value_is_not_told_and_a_missing_file_is() -> None:
    with pytest.raises(UserError) as caught:
        env_file.parse("TOKEN 1=hush", ".env")
    assert "hush" not in str(caught.value)
    with pytest.raises(UserError, match=r"--env-file: no\.env cannot be read"):
        env_file.load_env_file(Path("no.env"))
