"""The API of `horovod.common.util`."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hvd_train.torch.exceptions import HorovodVersionMismatchError, get_version_mismatch_message

T = TypeVar("T")

EXTENSIONS = ["torch"]


def _cache(f: Callable[..., T]) -> Callable[..., T]:
    """Return `f` with cached results."""
    return functools.cache(f)


@contextmanager
def env(**kwargs: str | None) -> Iterator[None]:
    """Set environment variables within the context. A value of None leaves a variable unchanged."""
    wanted = {name: value for name, value in kwargs.items() if value is not None}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def check_extension(ext_name: str, ext_env_var: str, pkg_path: str, *args: Any) -> None:
    """Raise ImportError for any framework but PyTorch. ddl needs no compiled extension."""
    if not extension_available(ext_name.rpartition(".")[2]):
        raise ImportError(
            f"{ext_name}: ddl's own engine supports horovod.torch only; --engine horovod runs the real Horovod"
        )


def extension_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Return True if `horovod.<ext_base_name>` is a supported framework."""
    return ext_base_name in EXTENSIONS


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    import torch

    return extension_available(ext_base_name) and torch.cuda.is_available()


def mpi_built(verbose: bool = False) -> bool:
    return True


def gloo_built(verbose: bool = False) -> bool:
    return False


def nccl_built(verbose: bool = False) -> bool:
    return False


def ddl_built(verbose: bool = False) -> bool:
    """Return False. The name refers to IBM's DDL library, which is not part of this project."""
    return False


def ccl_built(verbose: bool = False) -> bool:
    return False


def check_installed_version(name: str, version: str, exception: Exception | None = None) -> None:
    """Warn if `version` is not the installed version of PyTorch.

    With `exception`, raise HorovodVersionMismatchError from it instead.
    """
    import torch

    installed = torch.__version__ if name in {"torch", "pytorch"} else None
    if installed == version:
        return
    if exception is not None:
        raise HorovodVersionMismatchError(name, version, installed) from exception
    warnings.warn(get_version_mismatch_message(name, version, installed), stacklevel=2)


def get_average_backwards_compatibility_fun(reduce_ops: Any) -> Callable[[Any, bool | None], Any]:
    """Return a function of `op` and the deprecated `average` that selects one of `reduce_ops`."""

    def chosen(op: Any, average: bool | None) -> Any:
        if op is not None and average is not None:
            raise ValueError("op and the deprecated average exclude each other; give op only")
        if average is not None:
            warnings.warn("average is deprecated: use op=hvd.Average or op=hvd.Sum", DeprecationWarning, stacklevel=2)
            return reduce_ops.Average if average else reduce_ops.Sum
        return reduce_ops.Average if op is None else op

    return chosen


def is_iterable(x: object) -> bool:
    try:
        iter(x)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def is_version_greater_equal_than(ver: str, target: str) -> bool:
    """Return True if version `ver` is at least `target`, which has the form major.minor.patch."""
    from torch.torch_version import TorchVersion

    if not isinstance(ver, str) or not isinstance(target, str):
        raise ValueError(f"expected two version strings, got {ver!r} and {target!r}")
    if len(target.split(".")) != 3:
        raise ValueError(f"expected a version as major.minor.patch, got '{target}'")
    return bool(TorchVersion(ver) >= target)


def num_rank_is_power_2(num_rank: int) -> bool:
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def split_list(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """Split `items` into `n` consecutive parts.

    Lengths differ by at most one, longer parts come first.
    """
    from hvd_train.comm.ops import shares

    ends = [sum(shares(len(items), n)[: i + 1]) for i in range(n)]
    return [items[end - count : end] for count, end in zip(shares(len(items), n), ends, strict=True)]
