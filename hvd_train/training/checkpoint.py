"""Checkpoints: safetensors and JSON in a folder that is complete or does not exist.

    step-00000120/
      model.safetensors  optimizer.safetensors  state.json
      ema.safetensors                           the model with averaged parameters (train.ema)
      rank-0.safetensors ...                    state that differs between ranks (generators, buffers)
      manifest.json                             SHA-256 of each of the above, written last
    abandoned-1/                                checkpoints that a resumed run does not continue from
    best.json                                   step, metric and value of the best checkpoint

A folder whose name begins with a dot is being written (`.draft`) or deleted (`.old`). Only rank 0
uses the disk, so hosts need not share the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.errors import UserError
from hvd_train.state import packing
from hvd_train.state.checkpoint_folder import BEST, MANIFEST, STATE, Best, folder_name, folders, number, read_best
from hvd_train.state.packing import from_bytes, to_bytes, to_file
from hvd_train.text import strict_json
from hvd_train.training import resume

MODEL, AVERAGED, TENSORS = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
BLOCK = 2**20
"""Bytes that are read at once for a checksum."""
Part = bytes | dict[str, Tensor]
"""The content of a file of a checkpoint: bytes, or tensors in the format of safetensors."""
Warn = Callable[[str], object]


@dataclass
class Snapshot:
    """All that a run needs to continue; equal on every rank except `mine`."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """The tensors that `state` refers to, such as those of the optimizer."""
    state: dict[str, Any]
    """The content of state.json."""
    mine: dict[str, Tensor] = field(default_factory=dict)
    """The state of this rank alone."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """The model with averaged parameters; empty without `train.ema`."""
    folder: Path | None = None
    """The folder that the checkpoint was read from."""

    @property
    def where(self) -> str:
        """The name of the checkpoint in messages."""
        return "the checkpoint" if self.folder is None else str(self.folder)


def save(snapshot: Snapshot, parent: Path, step: int, keep: int, comm: Communicator, best: Best | None = None) -> None:
    """Write `parent/step-N`, and delete all earlier checkpoints but the newest `keep` - 1 and the best.

    `best` is the new mark if this checkpoint is the best. The call is collective.
    """
    mine = torch.frombuffer(bytearray(to_bytes(snapshot.mine)), dtype=torch.uint8)
    of_ranks = comm.all_gather(mine)
    if comm.rank == 0:
        write(parent / folder_name(step), _parts(snapshot, of_ranks))
        if best is not None:
            mark_best(parent, best)
        marked = read_best(parent)
        before = [folder for folder in folders(parent) if number(folder) < step]
        for old in before[keep - 1 :]:
            if marked is None or number(old) != marked.step:
                shutil.rmtree(_hidden(old))
    comm.barrier()


def _parts(snapshot: Snapshot, of_ranks: list[Tensor]) -> dict[str, Part]:
    """Return the files of a checkpoint."""
    ranks = {f"rank-{rank}.safetensors": content.numpy().tobytes() for rank, content in enumerate(of_ranks)}
    averaged = {AVERAGED: snapshot.averaged} if snapshot.averaged else {}
    state = strict_json.dumps_exact(snapshot.state).encode()
    return {**ranks, MODEL: snapshot.model, **averaged, TENSORS: snapshot.optimizer, STATE: state}


def mark_best(parent: Path, best: Best) -> None:
    """Write the mark of the best checkpoint, whose folder exists, all or nothing."""
    draft = parent / f".{BEST}.draft"
    content = {"folder": folder_name(best.step), **vars(best)}
    with open(draft, "wb") as file:
        file.write(strict_json.dumps_exact(content).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(parent / BEST)
    _sync_folder(parent)


def abandon_others(parent: Path, source: Path | None) -> list[str]:
    """Move checkpoints that the run resumed from `source` leaves behind to `parent`/abandoned-N.

    These are the checkpoints newer than `source`, all checkpoints if `source` is of another run,
    and damaged ones, which would count as checkpoints to keep. Interrupted writes are completed or
    deleted. Returns a sentence for each kind that it moved.
    """
    _complete_drafts(parent)
    own = source is not None and source.parent.resolve() == parent.resolve()
    last = number(source) if source is not None and own else -1
    other_branch = [folder for folder in folders(parent) if number(folder) > last]
    damaged = [folder for folder in folders(parent) if number(folder) < last and not _is_complete(folder)]
    moved = [*other_branch, *damaged]
    if not moved:
        return []
    aside = next(f for n in range(1, 10**6) if not (f := parent / f"abandoned-{n}").exists())
    aside.mkdir()
    for folder in moved:
        folder.rename(aside / folder.name)
    if read_best(parent) is None:
        (parent / BEST).unlink(missing_ok=True)
    branch = f"{_listed(other_branch)} moved to {aside}: this run continues from {source}"
    broken = f"{_listed(damaged)} moved to {aside}: damaged"
    return [text for text, some in ((branch, other_branch), (broken, damaged)) if some]


def write(folder: Path, parts: Mapping[str, Part]) -> None:
    """Write `parts` and their manifest to `folder`, all or nothing, even if the machine crashes."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    sums = {}
    for name, part in parts.items():
        _write_file(draft / name, part)
        sums[name] = _sha256(draft / name)
    _write_file(draft / MANIFEST, strict_json.dumps(sums, indent=1).encode())
    _sync_folder(draft)
    _replace(folder, draft)


def _write_file(path: Path, part: Part) -> None:
    """Write `part` and sync it to disk. Tensors are written from their memory: a copy would be another model."""
    if isinstance(part, bytes):
        path.write_bytes(part)
    else:
        to_file(part, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def read(folder: Path) -> dict[str, bytes]:
    """Return the parts of a checkpoint.

    Raise ValueError, with its name, if a part is damaged, UserError if a newer ddl wrote it.
    """
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


def weights(folder: Path) -> dict[str, Any]:
    """Return the state to use the model of a checkpoint with, as `nn.Module.load_state_dict` takes it.

    The parameters are averaged if the run had `train.ema`. Raise ValueError if a part is damaged.
    """
    parts = read(folder)
    others = strict_json.loads_exact(parts[STATE]).get("others")
    unpacked = packing.unpack(others, from_bytes(parts[TENSORS])) if others else {}
    return {**from_bytes(parts.get(AVERAGED, parts[MODEL])), **unpacked}


def load(source: Path, comm: Communicator, warn: Warn) -> Snapshot:
    """Return the newest complete checkpoint of the run folder `source`, or the checkpoint `source`.

    The call is collective; rank 0 reads. `warn(text)` is called for damaged checkpoints. `mine` is
    empty if the checkpoint has no state of this rank.
    """
    parts: dict[str, bytes] = {}
    folder = problem = None
    if comm.rank == 0:
        try:
            folder, parts = _newest_complete(source, warn)
        except UserError as error:
            problem = str(error)
    problem, where = broadcast_json(comm, [problem, str(folder)])
    if problem:
        raise UserError(problem)
    received = dict(_broadcast_parts(parts, comm))
    mine = received.get(f"rank-{comm.rank}.safetensors")
    return Snapshot(
        model=from_bytes(received[MODEL]),
        optimizer=from_bytes(received[TENSORS]),
        state=strict_json.loads_exact(received[STATE]),
        averaged=from_bytes(received[AVERAGED]) if AVERAGED in received else {},
        mine=from_bytes(mine) if mine else {},
        folder=Path(where),
    )


def _newest_complete(source: Path, warn: Warn) -> tuple[Path, dict[str, bytes]]:
    """Return the folder and its contents.

    An interrupted write counts if its manifest is complete.
    """
    drafts = [d for d in _drafts(source / "checkpoints") if _is_complete(d)]
    run = sorted([*drafts, *folders(source / "checkpoints")], key=number, reverse=True)
    for folder in [source] if (source / MANIFEST).exists() else run:
        try:
            return folder, read(folder)
        except ValueError as error:
            warn(f"checkpoint damaged, trying the previous one: {error}")
    raise UserError(
        f"--resume: no complete checkpoint in {source}; expected a run folder, or one of its checkpoints/step-*"
    )


def _check(folder: Path, parts: dict[str, bytes]) -> None:
    """Raise ValueError if `parts`, whose sums are right, are not of the form that `save` writes."""
    missing = next((n for n in (STATE, MODEL, TENSORS) if n not in parts), None)
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


def _is_complete(folder: Path) -> bool:
    try:
        read(folder)
    except (ValueError, UserError):
        return False
    return True


def _drafts(parent: Path) -> list[Path]:
    return list(parent.glob(".step-*.draft"))


def _complete_drafts(parent: Path) -> None:
    """Complete or delete what interrupted writes left."""
    for draft in _drafts(parent):
        if _is_complete(draft):
            _replace(parent / draft.name.removeprefix(".").removesuffix(".draft"), draft)
        shutil.rmtree(draft, ignore_errors=True)
    for old in parent.glob(".step-*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _replace(folder: Path, draft: Path) -> None:
    """Rename the complete `draft` to `folder`; one of them exists at any time."""
    old = _hidden(folder) if folder.exists() else None
    draft.rename(folder)
    _sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def _hidden(folder: Path) -> Path:
    """Rename a checkpoint for deletion, so that no part of it is ever visible under its own name.

    Return the new path.
    """
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return folder.rename(old)


def _listed(paths: list[Path]) -> str:
    return ", ".join(folder.name for folder in paths)


def _broadcast_parts(parts: dict[str, bytes], comm: Communicator) -> Iterator[tuple[str, bytes]]:
    """Yield rank 0's parts on every rank, one at a time; collective."""
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
