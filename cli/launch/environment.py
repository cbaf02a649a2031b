"""Environment variables for ranks or for a job: `-x NAME` and `-x NAME=VALUE`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from hvd_train.errors import UserError

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE", re.IGNORECASE)


def variables(
    assignments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names to forward from this shell, and the variables with values.

    UserError for a name that is not set in this shell, and for a value of a variable that looks
    like a secret.
    """
    for word in assignments:
        name, equals, _ = word.partition("=")
        if not name.isidentifier():
            raise UserError(f"--env: '{word}' is not a variable; expected KEY=VALUE or KEY")
        if not equals and name not in environment:
            raise UserError(f"--env: {name} is not set in this shell; set it, or give {name}=VALUE")
        if equals and is_secret(name):
            raise UserError(
                f"--env: {name} looks like a secret, and a value given here is shown and written to files; "
                f"export it and give only the name: -x {name}"
            )
    forward = tuple(a for a in assignments if "=" not in a)
    pairs = (a.partition("=") for a in assignments if "=" in a)
    return forward, {name: value for name, _, value in pairs}


def is_secret(name: str) -> bool:
    """Return True if `name` looks like a variable whose value must not be shown."""
    return _SECRET.search(name) is not None
