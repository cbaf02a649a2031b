"""Waiting on a word of shared memory in the kernel (futex), and counters that wrap around."""

from __future__ import annotations

import ctypes
import platform
import sys
import time

_WAIT, _WAKE = 0, 1
_ALL = 0x7FFFFFFF
_NUMBERS = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "s390x": 238}
_NUMBER = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
"""The number of the system call; None where there is none."""
_syscall = ctypes.CDLL(None, use_errno=True).syscall

ROUNDS = 0x3FFFFFFF
"""Mask of the numbers of rounds."""


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def wait(address: ctypes.c_void_p, value: int, seconds: float) -> None:
    """Sleep while the 32-bit word at `address` is `value`, for at most `seconds` < 1.

    Without futexes, sleep for 0.1 ms. May return early: callers check the word again.
    """
    if _NUMBER is None:
        time.sleep(1e-4)
        return
    timeout = _Timespec(0, int(seconds * 1e9))
    _syscall(_NUMBER, address, _WAIT, value, ctypes.byref(timeout), None, 0)


def wake(address: ctypes.c_void_p) -> None:
    """Wake all threads, of any process, that sleep on the word at `address`."""
    if _NUMBER is None:
        time.sleep(0)
        return
    _syscall(_NUMBER, address, _WAKE, _ALL, None, None, 0)


def reached(seen: int, round_: int) -> bool:
    """Return True if a counter that reads `seen` has reached `round_`.

    Ranks are never more than one round apart.
    """
    return (seen - round_) & ROUNDS < 0x20000000
