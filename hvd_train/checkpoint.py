"""Checkpoints: safetensors and JSON in a folder that is complete or does not exist.

    step-00000120/
      model.safetensors  optimizer.safetensors  state.json
      rank-0.safetensors ...                    what differs between ranks (generators, buffers)
      manifest.json                             SHA-256 of each of the above, written last

Only rank 0 touches the disk, so the folder need not be shared between hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train import strict_json
from hvd_train.comm.base import Communicator, broadcast_json
from hvd_train.errors import UserError
from hvd_train.packing import from_bytes, to_bytes

MANIFEST = "manifest.json"
Warn = Any


@dataclass
class Snapshot:
    """All that a run goes on from: equal on every rank but for `mine`."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    mine: dict[str, Tensor] = field(default_factory=dict)


def folders(parent: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first."""
    return sorted(parent.glob("step-*[0-9]"), reverse=True)


def save(snapshot: Snapshot, parent: Path, step: int, keep: int, comm: Communicator) -> None:
    """Write `parent/step-N` and drop all but the newest `keep`; collective."""
    mine = torch.frombuffer(bytearray(to_bytes(snapshot.mine)), dtype=torch.uint8)
    of_ranks = comm.all_gather(mine)
    if comm.rank == 0:
        parts = {f"rank-{r}.safetensors": b.numpy().tobytes() for r, b in enumerate(of_ranks)}
        parts["model.safetensors"] = to_bytes(snapshot.model)
        parts["optimizer.safetensors"] = to_bytes(snapshot.optimizer)
        parts["state.json"] = strict_json.dumps_exact(snapshot.state).encode()
        write(parent / f"step-{step:08d}", parts)
        for old in folders(parent)[keep:]:
            shutil.rmtree(old)
    comm.barrier()


def write(folder: Path, parts: dict[str, bytes]) -> None:
    """Put `parts` and their manifest into `folder`, all or nothing, even if the machine goes down."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    for name, content in {**parts, MANIFEST: strict_json.dumps(sums, indent=1).encode()}.items():
        with open(draft / name, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    _sync_folder(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    _sync_folder(folder.parent)


def read(folder: Path) -> dict[str, bytes]:
    """The parts of a checkpoint; ValueError says which of them is damaged."""
    try:
        sums = json.loads((folder / MANIFEST).read_bytes())
        parts = {name: (folder / name).read_bytes() for name in sums}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ValueError(f"{folder / name}: its SHA-256 is not the manifest's")
    return parts


def load(source: Path, comm: Communicator, warn: Warn) -> Snapshot:
    """The newest whole checkpoint of the run folder (or the one checkpoint) `source`; collective, rank 0 reads.

    `warn(text)` hears of damaged ones. A rank that the checkpoint does not know has an empty `mine`.
    """
    parts: dict[str, bytes] = {}
    problem = None
    if comm.rank == 0:
        parts, problem = _newest_whole(source, warn)
    problem = broadcast_json(comm, problem)
    if problem:
        raise UserError(problem)
    received = dict(_broadcast_parts(parts, comm))
    mine = received.get(f"rank-{comm.rank}.safetensors")
    return Snapshot(
        model=from_bytes(received["model.safetensors"]),
        optimizer=from_bytes(received["optimizer.safetensors"]),
        state=strict_json.loads_exact(received["state.json"]),
        mine=from_bytes(mine) if mine else {},
    )


def _newest_whole(source: Path, warn: Warn) -> tuple[dict[str, bytes], str | None]:
    candidates = [source] if (source / MANIFEST).exists() else folders(source / "checkpoints")
    for folder in candidates:
        try:
            return read(folder), None
        except ValueError as error:
            warn(f"checkpoint damaged, trying the one before: {error}")
    return (
        {},
        f"--resume: no whole checkpoint in {source}; expected a run folder, or one of its checkpoints/step-*",
    )


def _broadcast_parts(parts: dict[str, bytes], comm: Communicator) -> Iterator[tuple[str, bytes]]:
    for name, size in broadcast_json(comm, {n: len(b) for n, b in parts.items()}).items():
        buffer = (
            torch.frombuffer(bytearray(parts[name]), dtype=torch.uint8)
            if parts
            else torch.empty(size, dtype=torch.uint8)
        )
        comm.broadcast_(buffer)
        yield name, buffer.numpy().tobytes()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
