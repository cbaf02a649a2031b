"""Runs operations beside the caller, in one thread that sleeps while there is nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

Task = Callable[[], object]


class Background:
    """Runs tasks one after another, in the order of `submit`.

    An exception is raised by the `wait` of its task.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Task, Future[None]] | None] = SimpleQueue()
        self._last: Future[None] = Future()
        self._last.set_result(None)
        # A daemon: a task that waits for dead ranks must not keep this process from exiting.
        self._thread = threading.Thread(target=self._run, name="ddl-comm", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """True if the caller is a task."""
        return threading.current_thread() is self._thread

    @property
    def busy(self) -> bool:
        """True if the caller is not a task and tasks are pending."""
        return not (self.here or self._last.done())

    def submit(self, task: Task) -> BackgroundWork:
        self._last = Future()
        self._tasks.put((task, self._last))
        return BackgroundWork(self._last)

    def settle(self) -> None:
        """Return once all submitted tasks are done."""
        self._last.result()

    def close(self) -> None:
        """End the thread; the last call, after `settle`."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        for task, future in iter(self._tasks.get, None):
            try:
                task()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)


class BackgroundWork:
    """The `Work` of a task."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()
