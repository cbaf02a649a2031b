"""GPUs, and how many each rank sees: a rank uses the GPU whose number is its local rank."""

from __future__ import annotations

import os
import shutil

from cli.doctor import nvidia
from cli.doctor.base import Check, Finding
from cli.launch import flavor

_QUERY = ("--query-gpu=name", "--format=csv,noheader")


def create() -> Check:
    return Check(_examine)


def _examine() -> Finding:
    nodes = nvidia.devices()
    if not nodes and not shutil.which("nvidia-smi"):
        return Finding("ok", "none on this machine", facts={"gpus": 0, "visible": 0})
    if not shutil.which("nvidia-smi"):
        return _no_driver(f"{len(nodes)} device files, but no nvidia-smi")
    answer = flavor.ask("nvidia-smi", *_QUERY)
    names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode or not names:
        return _no_driver(f"the driver does not answer: {names[0] if names else f'exit code {answer.returncode}'}")
    return judge(names, os.environ.get("CUDA_VISIBLE_DEVICES"))


def judge(names: list[str], visible: str | None) -> Finding:
    """Judge GPUs called `names` with CUDA_VISIBLE_DEVICES equal to `visible`."""
    shown = None if visible is None else [word.strip() for word in visible.split(",") if word.strip()]
    seen = len(names) if shown is None else len(shown)
    facts = {"gpus": len(names), "visible": seen}
    found = f"{len(names)} x {names[0]}"
    unset = "unset CUDA_VISIBLE_DEVICES"
    absent = next((word for word in shown or () if word.isdigit() and int(word) >= len(names)), None)
    if absent is not None:
        figure = f"{found}, but CUDA_VISIBLE_DEVICES={visible} names GPU {absent}, which does not exist"
        return Finding("error", figure, unset, facts)
    if len(set(shown or ())) < len(shown or ()):
        return Finding(
            "error", f"CUDA_VISIBLE_DEVICES={visible} names a GPU twice, so two ranks share it", unset, facts
        )
    if shown is not None and (not shown or shown == ["-1"]):
        return Finding(
            "warning", f"{found}, but CUDA_VISIBLE_DEVICES hides all from ranks", unset, facts | {"visible": 0}
        )
    return Finding("ok", f"{found}, {seen} visible to each rank: enough for {seen} ranks", facts=facts)


def _no_driver(figure: str) -> Finding:
    return Finding(
        "error", figure, "give the container its GPUs (docker run --gpus all), or load the driver: modprobe nvidia"
    )
