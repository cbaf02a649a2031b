"""Bring what all ranks explained to rank 0."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.trained.explaining.explainer import Explained

MAPS = "maps.npz"
"""Arrays `SAMPLE.FIELD.map` and `SAMPLE.FIELD.input`, by the position of a sample and the place of a field."""


def collect(comm: Communicator, explained: Sequence[Explained], folder: Path) -> list[dict[str, Any]]:
    """Return the documents of all ranks by position; rank 0 writes their arrays, if any.

    Collective.
    """
    documents = [document for part in gather_json(comm, [e.document for e in explained]) for document in part]
    arrays: dict[str, Any] = {
        f"{e.document['sample']}.{name}": x.numpy() for e in explained for name, x in e.arrays.items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    parts = comm.all_gather(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    loaded = [np.load(io.BytesIO(part.numpy().tobytes()), allow_pickle=False) for part in parts]
    whole: dict[str, Any] = {name: part[name] for part in loaded for name in part}
    if comm.rank == 0 and whole:
        np.savez_compressed(folder / MAPS, **whole)
    return sorted(documents, key=lambda document: int(document["sample"]))
