"""Checkpoints are complete or do not exist."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.state.packing import pack, unpack
from hvd_train.training import checkpoint
from hvd_train.training.checkpoint import Snapshot, folders, load, save
from tests.engines import threads

ALONE = SingleCommunicator()


def snapshot(value: float) -> Snapshot:
    return Snapshot(
        {"w": torch.full((3,), value)}, {"m": torch.full((2,), value)}, {"step": value}, {"r": torch.ones(1)}
    )


def test_what_was_saved_is_loaded_by_every_rank_though_only_rank_0_reads(tmp_path: Path) -> None:
    def run(comm: Any) -> None:
        mine = Snapshot({"w": torch.arange(5.0)}, {}, {"a": [1]}, {"rng": torch.tensor([comm.rank])})
        save(mine, tmp_path / "checkpoints", 3, 2, comm)
        got = load(tmp_path if comm.rank == 0 else Path("/nowhere"), comm, pytest.fail)
        assert torch.equal(got.model["w"], torch.arange(5.0))
        assert got.state == {"a": [1]}
        assert got.mine["rng"].item() == comm.rank

    threads.run(3, run)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 20):
        save(snapshot(step), tmp_path, step, 2, ALONE)
    assert [f.name for f in folders(tmp_path)] == ["step-00000020", "step-00000005"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        lambda folder: (folder / "state.json").write_text('{"step": 7}'),
        lambda folder: (folder / "manifest.json").write_text("{"),
    ],
    ids=["truncated", "missing", "changed", "no manifest"],
)
def test_a_damaged_newest_one_gives_way_to_the_one_before_with_a_warning(tmp_path: Path, damage: Any) -> None:
    for step in (1, 2):
        save(snapshot(step), tmp_path / "checkpoints", step, 3, ALONE)
    damage(tmp_path / "checkpoints" / "step-00000002")
    warnings: list[str] = []
    assert load(tmp_path, ALONE, warnings.append).state == {"step": 1}
    assert len(warnings) == 1
    assert "step-00000002" in warnings[0]


def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        load(tmp_path, ALONE, print)


def test_one_checkpoint_can_be_named(tmp_path: Path) -> None:
    for step in (1, 2):
        save(snapshot(step), tmp_path, step, 3, ALONE)
    assert load(tmp_path / "step-00000001", ALONE, print).state == {"step": 1}


def test_a_write_that_is_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(descriptor: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", lost)
    with pytest.raises(OSError, match="gone"):
        checkpoint.write(tmp_path / "step-00000001", {"state.json": b"{}"})
    assert folders(tmp_path) == []


def test_all_of_a_file_is_written_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a crash of the machine could lose a file that the manifest lists."""
    synced: dict[int, int] = {}

    def sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", sync)
    checkpoint.write(tmp_path / "step-00000001", {"state.json": b"{}", "model.safetensors": bytes(100_000)})
    files = [file.stat() for file in (tmp_path / "step-00000001").iterdir()]
    assert len(files) == 3
    assert {file.st_ino: file.st_size for file in files}.items() <= synced.items()


trees: Any = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.just("T"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2) | st.integers(0, 5), inner, max_size=3)
    ),
)


@given(trees)
def test_pack_and_unpack_are_inverse(tree: Any) -> None:
    def planted(value: Any) -> Any:
        if isinstance(value, list):
            return [planted(v) for v in value]
        if isinstance(value, dict):
            return {k: planted(v) for k, v in value.items()}
        return torch.tensor([1, 2]) if value == "T" else value

    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(planted(tree), "x", tensors)))
    assert str(unpack(packed, tensors)) == str(planted(tree))


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    save(snapshot(1), tmp_path, 1, 1, ALONE)
    assert {f.suffix for f in (tmp_path / "step-00000001").iterdir()} == {".safetensors", ".json"}
