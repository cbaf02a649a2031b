"""The variants and cases that the options of `ddl bench` select."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.text.names import find

FAMILIES = {"allreduce": "allreduce", "step": "step", "scaling": "step", "horovod": "api"}
"""The folder of variants in `hvd_train.bench` for each measurement."""
SIZES = "1K,4K,16K,64K,256K,1M,4M,16M,64M,256M"
CALLS = ["1", "100"]
"""Numbers of named all-reduces in flight, for implementations of Horovod's API."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_BUFFERS_OF_CHECK = 2
"""Buffers that a rank needs to check a sum, besides the buffer of each variant."""


def select_variants(what: str, text: str | None) -> list[str]:
    """Return the variants of `--variants`; a step always includes `local`, its lower bound."""
    known = plugins.names(f"hvd_train.bench.{FAMILIES[what]}.implementations")
    default = "local,ddl_mpi,ddp" if what == "scaling" else ",".join(known)
    chosen = _chosen("--variants", text or default, known)
    return chosen if what in ("allreduce", "horovod") else list(dict.fromkeys(["local", *chosen]))


def select_cases(what: str, sizes: str | None, workloads: str | None) -> list[str]:
    """Return the cases for the ranks: numbers of bytes or calls, or a workload and an optimizer."""
    from hvd_train.bench.workloads import OPTIMIZERS, WORKLOADS

    if what == "horovod":
        if sizes is not None or workloads is not None:
            raise UserError(
                "bench horovod has neither --sizes nor --workloads; bench step times its DistributedOptimizer"
            )
        return CALLS
    if what == "allreduce":
        if workloads is not None:
            raise UserError("--workloads: bench allreduce has --sizes; workloads are for step and scaling")
        return [str(n) for n in sorted({parse_size(word) for word in (sizes or SIZES).split(",")})]
    if sizes is not None:
        raise UserError(f"--sizes: bench {what} has --workloads; sizes are for allreduce")
    scaling = what == "scaling"
    models = _chosen("--workloads", workloads or ("mlp" if scaling else ",".join(WORKLOADS)), WORKLOADS)
    return [f"{model} {name}" for model in models for name in (["AdamW"] if scaling else OPTIMIZERS)]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4K or 64M.

    UserError if they are not whole float32 numbers.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < 4 or size % 4:
        raise UserError(f"--sizes: '{text}' is not a size of float32 numbers; expected bytes such as 4K or 64M")
    return size


def check_memory(sizes: Sequence[str], variants: int, ranks: int, available: int) -> None:
    """Raise UserError if `ranks` ranks need more than `available` bytes for the largest size.

    Each rank has one buffer per variant, and two more to check the sums.
    """
    largest = max(map(int, sizes))
    needed = largest * (variants + _BUFFERS_OF_CHECK) * ranks
    if needed > available:
        raise UserError(
            f"--sizes: an all-reduce of {largest} bytes needs {needed / 2**30:.1f} GiB on this machine ({ranks} ranks), "
            f"but only {available / 2**30:.1f} GiB are available; give smaller sizes, or fewer --variants or --np"
        )


def _chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    return list(dict.fromkeys(find(word, known, f"{option}: no") for word in text.split(",")))
