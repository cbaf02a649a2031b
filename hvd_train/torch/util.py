"""What scripts take from `horovod.common.util`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def check_extension(ext_name: str, ext_env_var: str, pkg_path: str, *args: Any) -> None:
    """Nothing: ours needs no extension to be built."""


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    import torch

    return torch.cuda.is_available()


def is_iterable(x: object) -> bool:
    return hasattr(x, "__iter__")


def num_rank_is_power_2(num_rank: int) -> bool:
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def split_list(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """`items` dealt into `n` consecutive parts whose lengths differ by one at most, the longer first."""
    from hvd_train.comm.base import shares

    ends = [sum(shares(len(items), n)[: i + 1]) for i in range(n)]
    return [items[end - count : end] for count, end in zip(shares(len(items), n), ends, strict=True)]
