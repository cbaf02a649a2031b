"""torch, the CUDA it was built for, and the GPUs that it finds."""

from __future__ import annotations

import sys
from typing import Any

from cli.doctor import nvidia, python
from cli.doctor.base import Check, Finding

_SOURCE = """\
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}))
"""


def create() -> Check:
    return Check(_examine, identical=("torch", "cuda"))


def _examine() -> Finding:
    install = f"{sys.executable} -m pip install --force-reinstall torch"
    try:
        facts = python.ask(_SOURCE)
    except python.ProbeFailed as reason:
        return Finding("error", f"torch does not load: {reason}", install)
    return judge(facts, devices=len(nvidia.devices()), hidden=nvidia.hidden(), install=install)


def judge(facts: dict[str, Any], devices: int, hidden: bool, install: str) -> Finding:
    found = f"{facts['torch']} for {'CUDA ' + facts['cuda'] if facts['cuda'] else 'CPUs only'}"
    if not devices or hidden:
        return Finding("ok", found, facts=facts)
    if facts["cuda"] is None:
        return Finding("warning", f"{found}, but this machine has {devices} GPUs", install, facts)
    if not facts["gpus"]:
        remedy = "install a driver for that CUDA (nvidia-smi shows the newest CUDA of a driver), or a torch for an older CUDA"
        return Finding("error", f"{found}, which finds none of {devices} GPUs", remedy, facts)
    return Finding("ok", f"{found}, which finds {facts['gpus']} of {devices} GPUs", facts=facts)
