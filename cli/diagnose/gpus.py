"""GPUs, and how many of them each rank sees: a rank takes the one whose number is its local rank."""

from __future__ import annotations

import os
import shutil

from cli import flavor
from cli.diagnose import _nvidia
from cli.diagnose.base import Check, Finding

_QUERY = ("--query-gpu=name", "--format=csv,noheader")


def create() -> Check:
    return Check(_examine)


def _examine() -> Finding:
    nodes = _nvidia.devices()
    if not nodes and not shutil.which("nvidia-smi"):
        return Finding("ok", "none on this machine", facts={"gpus": 0, "visible": 0})
    if not shutil.which("nvidia-smi"):
        return _no_driver(f"{len(nodes)} device files, and no nvidia-smi")
    told = flavor.ask("nvidia-smi", *_QUERY)
    names = [line.strip() for line in told.stdout.splitlines() if line.strip()]
    if told.returncode or not names:
        return _no_driver(f"the driver does not answer: {names[0] if names else f'exit code {told.returncode}'}")
    return judge(names, os.environ.get("CUDA_VISIBLE_DEVICES"))


def judge(names: list[str], visible: str | None) -> Finding:
    """What ranks see of the GPUs called `names` where CUDA_VISIBLE_DEVICES is `visible`."""
    shown = None if visible is None else [word.strip() for word in visible.split(",") if word.strip()]
    seen = len(names) if shown is None else len(shown)
    facts = {"gpus": len(names), "visible": seen}
    found = f"{len(names)} x {names[0]}"
    unset = "unset CUDA_VISIBLE_DEVICES"
    wrong = next((word for word in shown or () if word.isdigit() and int(word) >= len(names)), None)
    if wrong is not None:
        return Finding("error", f"{found}, and CUDA_VISIBLE_DEVICES={visible} names GPU {wrong}", unset, facts)
    if len(set(shown or ())) < len(shown or ()):
        return Finding(
            "error", f"CUDA_VISIBLE_DEVICES={visible} names a GPU twice: two ranks would share it", unset, facts
        )
    if shown is not None and (not shown or shown == ["-1"]):
        return Finding(
            "warning", f"{found}, and CUDA_VISIBLE_DEVICES hides all from ranks", unset, facts | {"visible": 0}
        )
    return Finding("ok", f"{found}, {seen} visible to each rank: up to {seen} ranks have one each", facts=facts)


def _no_driver(why: str) -> Finding:
    return Finding(
        "error", why, "give the container its GPUs (docker run --gpus all), or load the driver: modprobe nvidia"
    )
