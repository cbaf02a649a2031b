"""Variables that a user names by -x."""

from __future__ import annotations

import pytest

from cli.launch.environment import variables
from hvd_train.errors import UserError

HERE = {"WANDB_API_KEY": "k", "A": "1"}


def test_a_name_is_forwarded_and_a_value_is_set() -> None:
    assert variables(["A", "B=2=3", "WANDB_API_KEY"], HERE) == (("A", "WANDB_API_KEY"), {"B": "2=3"})


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("C", "--env: C is not set in this shell; set it, or give C=VALUE"),
        ("1=2", "--env: '1=2' is not a variable; expected KEY=VALUE or KEY"),
        ("=2", "is not a variable"),
        *((f"{name}=x", f"{name} looks like a secret") for name in ("WANDB_API_KEY", "my_token", "Db_Password")),
    ],
)
def test_variables_that_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        variables([word], HERE)
    assert said in str(caught.value)
    assert "=x" not in str(caught.value)
