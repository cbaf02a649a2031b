"""The Python that runs the ranks, and the ddl installed in it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from cli.doctor.base import Check, Finding
from hvd_train.errors import install_remedy


def create() -> Check:
    return Check(_examine, identical=("python", "ddl"))


def _examine() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    facts = {"python": platform.python_version(), "executable": sys.executable}
    try:
        facts["ddl"] = version("ddl")
    except PackageNotFoundError:
        remedy = install_remedy()
        return Finding("warning", f"{found}, without ddl: ranks on other hosts cannot import it", remedy, facts)
    return Finding("ok", f"{found}, ddl {facts['ddl']}", facts=facts)
