"""The API of `horovod.runner.util.threads`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_thread(
    target: Callable[..., object], args: tuple[Any, ...] = (), name: str | None = None, daemon: bool = True,
    silent: bool = False,
) -> threading.Thread:  # fmt: skip
    """Call `target(*args)` in a thread and return the thread. `silent` drops its exceptions."""
    if not isinstance(args, tuple):
        raise ValueError(f"args: expected a tuple, got {type(args).__name__}; write (arg,) for a single argument")

    def call() -> None:
        with contextlib.suppress(Exception) if silent else contextlib.nullcontext():
            target(*args)

    thread = threading.Thread(target=call, name=name, daemon=daemon)
    thread.start()
    return thread


def execute_function_multithreaded(
    fn: Callable[..., Any], args_list: list[list[Any]], block_until_all_done: bool = True,
    max_concurrent_executions: int = 1000,
) -> dict[int, Any] | None:  # fmt: skip
    """Call `fn` in threads with each list of arguments.

    Return the results by index, or None without `block_until_all_done`.
    """
    pool = ThreadPoolExecutor(max(1, min(max_concurrent_executions, len(args_list))))
    calls = [pool.submit(fn, *args) for args in args_list]
    pool.shutdown(wait=block_until_all_done)
    return {i: call.result() for i, call in enumerate(calls)} if block_until_all_done else None
