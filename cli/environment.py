"""Variables that a user names for ranks, or for a job: `-x NAME` and `-x NAME=VALUE`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from hvd_train.errors import UserError

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE", re.IGNORECASE)


def variables(
    assignments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names to take over from this shell, and variables with values. UserError where a value is a secret's."""
    for word in assignments:
        name, equals, _ = word.partition("=")
        if not name.isidentifier():
            raise UserError(f"--env: '{word}' is no variable; expected KEY=VALUE or KEY")
        if not equals and name not in environment:
            raise UserError(f"--env: {name} is not set in this shell; set it, or give {name}=VALUE")
        if equals and is_secret(name):
            raise UserError(
                f"--env: {name} looks like a secret, and a value given here is shown and written to files; "
                f"export it and give the name alone: -x {name}"
            )
    forward = tuple(a for a in assignments if "=" not in a)
    pairs = (a.partition("=") for a in assignments if "=" in a)
    return forward, {name: value for name, _, value in pairs}


def is_secret(name: str) -> bool:
    """Whether the variable `name` looks like one whose value must not be shown."""
    return _SECRET.search(name) is not None
