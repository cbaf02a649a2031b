"""The Python that ranks run on, and the ddl installed in it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from cli.diagnose.base import Check, Finding


def create() -> Check:
    return Check(_examine, alike=("python", "ddl"))


def _examine() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    facts = {"python": platform.python_version(), "executable": sys.executable}
    try:
        facts["ddl"] = version("ddl")
    except PackageNotFoundError:
        remedy = f"in its checkout: {sys.executable} -m pip install --editable ."
        return Finding("warning", f"{found}, without ddl: ranks on other hosts will not find it", remedy, facts)
    return Finding("ok", f"{found}, ddl {facts['ddl']}", facts=facts)
