"""torch, the CUDA it was built for, and whether that finds the GPUs of this machine."""

from __future__ import annotations

import sys
from typing import Any

from cli.diagnose import _nvidia, _python
from cli.diagnose.base import Check, Finding

_SOURCE = """\
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}))
"""


def create() -> Check:
    return Check(_examine, alike=("torch", "cuda"))


def _examine() -> Finding:
    install = f"{sys.executable} -m pip install --force-reinstall torch"
    try:
        facts = _python.ask(_SOURCE)
    except _python.NoAnswer as reason:
        return Finding("error", f"torch does not load: {reason}", install)
    return judge(facts, devices=len(_nvidia.devices()), hidden=_nvidia.hidden(), install=install)


def judge(facts: dict[str, Any], devices: int, hidden: bool, install: str) -> Finding:
    found = f"{facts['torch']} for {'CUDA ' + facts['cuda'] if facts['cuda'] else 'processors only'}"
    if not devices or hidden:
        return Finding("ok", found, facts=facts)
    if facts["cuda"] is None:
        return Finding("warning", f"{found}, beside {devices} GPUs", install, facts)
    if not facts["gpus"]:
        remedy = (
            "install a driver as new as that CUDA (nvidia-smi shows what the driver can), or a torch for an older one"
        )
        return Finding("error", f"{found}, which finds none of {devices} GPUs", remedy, facts)
    return Finding("ok", f"{found}, which finds {facts['gpus']} of {devices} GPUs", facts=facts)
