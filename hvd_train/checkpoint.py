"""Checkpoints: safetensors and JSON in a folder that is complete or does not exist.

    step-00000120/
      model.safetensors  optimizer.safetensors  state.json
      rank-0.safetensors ...                    what differs between ranks (generators, buffers)
      manifest.json                             SHA-256 of each of the above, written last
    abandoned-1/                                what a run that resumed does not stand on

A name that begins with a dot is a folder on its way in (`.draft`) or out (`.old`). Only rank 0 touches the disk, so the folder
need not be shared between hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train import resume, strict_json
from hvd_train.comm.base import Communicator, broadcast_json
from hvd_train.errors import UserError
from hvd_train.packing import from_bytes, to_bytes

MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d+)")
Warn = Any


@dataclass
class Snapshot:
    """All that a run goes on from: equal on every rank but for `mine`."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    mine: dict[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None
    """Where it was read from."""

    @property
    def where(self) -> str:
        return "the checkpoint" if self.folder is None else str(self.folder)


def folders(parent: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first."""
    return sorted((f for f in parent.glob("step-*") if _NAME.fullmatch(f.name)), key=_number, reverse=True)


def save(snapshot: Snapshot, parent: Path, step: int, keep: int, comm: Communicator) -> None:
    """Write `parent/step-N`; of those before it the newest `keep` - 1 stay. Collective."""
    mine = torch.frombuffer(bytearray(to_bytes(snapshot.mine)), dtype=torch.uint8)
    of_ranks = comm.all_gather(mine)
    if comm.rank == 0:
        parts = {f"rank-{r}.safetensors": b.numpy().tobytes() for r, b in enumerate(of_ranks)}
        parts["model.safetensors"] = to_bytes(snapshot.model)
        parts["optimizer.safetensors"] = to_bytes(snapshot.optimizer)
        parts[STATE] = strict_json.dumps_exact(snapshot.state).encode()
        write(parent / f"step-{step:08d}", parts)
        before = [folder for folder in folders(parent) if _number(folder) < step]
        for old in before[keep - 1 :]:
            shutil.rmtree(_out_of_the_way(old))
    comm.barrier()


def put_aside(parent: Path, source: Path | None) -> list[str]:
    """Move into `parent`/abandoned-N what a run that goes on from `source` does not stand on; a sentence for each such move.

    That is every checkpoint of another branch, being newer than `source` or from another folder's run, and every damaged one,
    which would count among those to keep. Left-overs of writes that were cut short are completed or deleted.
    """
    _settle_drafts(parent)
    own = source is not None and source.parent.resolve() == parent.resolve()
    last = _number(source) if source is not None and own else -1
    of_others = [folder for folder in folders(parent) if _number(folder) > last]
    damaged = [folder for folder in folders(parent) if _number(folder) < last and not _whole(folder)]
    moved = [*of_others, *damaged]
    if not moved:
        return []
    aside = next(f for n in range(1, 10**6) if not (f := parent / f"abandoned-{n}").exists())
    aside.mkdir()
    for folder in moved:
        folder.rename(aside / folder.name)
    branch = f"{_listed(of_others)} put aside in {aside}: this run goes on from {source}"
    broken = f"{_listed(damaged)} put aside in {aside}: damaged"
    return [text for text, some in ((branch, of_others), (broken, damaged)) if some]


def write(folder: Path, parts: dict[str, bytes]) -> None:
    """Put `parts` and their manifest into `folder`, all or nothing, even if the machine goes down."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    for name, content in {**parts, MANIFEST: strict_json.dumps(sums, indent=1).encode()}.items():
        with open(draft / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(draft)
    _replace(folder, draft)


def read(folder: Path) -> dict[str, bytes]:
    """The parts of a checkpoint; ValueError says which of them is damaged, UserError that a newer ddl wrote it."""
    try:
        sums = json.loads((folder / MANIFEST).read_bytes())
        parts = {name: (folder / name).read_bytes() for name in sums}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ValueError(f"{folder / name}: its SHA-256 is not the manifest's")
    _check(folder, parts)
    return parts


def load(source: Path, comm: Communicator, warn: Warn) -> Snapshot:
    """The newest whole checkpoint of the run folder (or the one checkpoint) `source`; collective, rank 0 reads.

    `warn(text)` hears of damaged ones. A rank that the checkpoint does not know has an empty `mine`.
    """
    parts: dict[str, bytes] = {}
    folder = problem = None
    if comm.rank == 0:
        try:
            folder, parts = _newest_whole(source, warn)
        except UserError as error:
            problem = str(error)
    problem, where = broadcast_json(comm, [problem, str(folder)])
    if problem:
        raise UserError(problem)
    received = dict(_broadcast_parts(parts, comm))
    mine = received.get(f"rank-{comm.rank}.safetensors")
    return Snapshot(
        model=from_bytes(received["model.safetensors"]),
        optimizer=from_bytes(received["optimizer.safetensors"]),
        state=strict_json.loads_exact(received[STATE]),
        mine=from_bytes(mine) if mine else {},
        folder=Path(where),
    )


def _newest_whole(source: Path, warn: Warn) -> tuple[Path, dict[str, bytes]]:
    """The folder and its contents; a write that was cut short once its manifest was complete counts."""
    drafts = [d for d in _drafts(source / "checkpoints") if _whole(d)]
    run = sorted([*drafts, *folders(source / "checkpoints")], key=_number, reverse=True)
    for folder in [source] if (source / MANIFEST).exists() else run:
        try:
            return folder, read(folder)
        except ValueError as error:
            warn(f"checkpoint damaged, trying the one before: {error}")
    raise UserError(
        f"--resume: no whole checkpoint in {source}; expected a run folder, or one of its checkpoints/step-*"
    )


def _check(folder: Path, parts: dict[str, bytes]) -> None:
    """ValueError unless `parts` have the form that `save` gives them, whatever their sums say."""
    missing = next((n for n in (STATE, "model.safetensors", "optimizer.safetensors") if n not in parts), None)
    if missing:
        raise ValueError(f"{folder}: {missing} is missing")
    for name, content in parts.items():
        try:
            if name.endswith(".safetensors"):
                from_bytes(content)
                continue
            values = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
        if name == STATE:
            resume.check(values, str(folder / name))


def _whole(folder: Path) -> bool:
    try:
        read(folder)
    except (ValueError, UserError):
        return False
    return True


def _number(folder: Path) -> int:
    """The step of a checkpoint or a draft of one; -1 where the name does not say."""
    found = _NAME.search(folder.name)
    return int(found[1]) if found else -1


def _drafts(parent: Path) -> list[Path]:
    return list(parent.glob(".step-*.draft"))


def _settle_drafts(parent: Path) -> None:
    for draft in _drafts(parent):
        if _whole(draft):
            _replace(parent / draft.name.removeprefix(".").removesuffix(".draft"), draft)
        shutil.rmtree(draft, ignore_errors=True)
    for old in parent.glob(".step-*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _replace(folder: Path, draft: Path) -> None:
    """Let the whole `draft` be `folder`; one of them is there at any time."""
    old = _out_of_the_way(folder) if folder.exists() else None
    draft.rename(folder)
    _sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def _out_of_the_way(folder: Path) -> Path:
    """Where a checkpoint is to be deleted, no part of which is ever seen under its own name."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return folder.rename(old)


def _listed(some: list[Path]) -> str:
    return ", ".join(folder.name for folder in some)


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
