"""Operations that go on while the caller computes: one thread, asleep where there is nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

Task = Callable[[], object]


class Background:
    """Runs tasks one after another, in the order in which they came; whoever waits for one gets its exception."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Task, Future[None]] | None] = SimpleQueue()
        self._last: Future[None] = Future()
        self._last.set_result(None)
        # A daemon: a task may wait for ranks that will never come, and must not keep this one from going.
        self._thread = threading.Thread(target=self._run, name="ddl-comm", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """The caller is a task."""
        return threading.current_thread() is self._thread

    @property
    def busy(self) -> bool:
        """Tasks are under way that the caller, which is none of them, would have to wait for."""
        return not (self.here or self._last.done())

    def submit(self, task: Task) -> Submitted:
        self._last = Future()
        self._tasks.put((task, self._last))
        return Submitted(self._last)

    def settle(self) -> None:
        """Return once all that was submitted is done."""
        self._last.result()

    def close(self) -> None:
        """The last call, after everything has settled."""
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


class Submitted:
    """The `Work` of a task."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()
