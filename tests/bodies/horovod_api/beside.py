"""The API of `horovod.common.util`, `horovod.data` and `horovod.runner.util.threads`."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bodies.horovod_api.base import OURS, Hvd, bodies, ours_only


def variables_for_a_while(hvd: Hvd) -> None:
    env = _module(hvd, "horovod.common.util").env
    os.environ["HVD_TEST_OLD"] = "before"
    with contextlib.suppress(KeyError), env(HVD_TEST_OLD="within", HVD_TEST_NEW="new", HVD_TEST_NONE=None):
        assert (os.environ["HVD_TEST_OLD"], os.environ["HVD_TEST_NEW"]) == ("within", "new")
        assert "HVD_TEST_NONE" not in os.environ
        raise KeyError
    assert os.environ.pop("HVD_TEST_OLD") == "before"
    assert "HVD_TEST_NEW" not in os.environ


def a_function_called_once_for_each_list_of_arguments(hvd: Hvd) -> None:
    calls = []
    cached = _module(hvd, "horovod.common.util")._cache(lambda *args, **kwargs: calls.append((args, kwargs)))
    for _ in range(2):
        cached(1)
        cached(1, b=2)
    assert calls == [((1,), {}), ((1,), {"b": 2})]


def what_was_built(hvd: Hvd) -> None:
    util = _module(hvd, "horovod.common.util")
    assert util.extension_available("torch")
    assert not util.extension_available("tensorflow")
    assert util.mpi_built() == hvd.mpi_built()
    assert util.gloo_built() == hvd.gloo_built()
    for name in ("nccl_built", "ddl_built", "ccl_built"):
        assert not getattr(util, name)()
    assert not util.gpu_available("torch")


def lists_and_versions(hvd: Hvd) -> None:
    util = _module(hvd, "horovod.common.util")
    assert util.split_list(list("abcde"), 2) == [["a", "b", "c"], ["d", "e"]]
    assert [util.is_iterable(x) for x in ([], "", iter([]), 1, None)] == [True, True, True, False, False]
    assert util.is_version_greater_equal_than("2.10.0", "2.9.1")
    assert not util.is_version_greater_equal_than("1.13.1", "2.0.0")
    with pytest.raises(ValueError, match=r"major\.minor\.patch"):
        util.is_version_greater_equal_than("1.0", "1.0")


def the_deprecated_average_of_a_function(hvd: Hvd) -> None:
    chosen = _module(hvd, "horovod.common.util").get_average_backwards_compatibility_fun(hvd)
    assert (chosen(None, None), chosen(hvd.Sum, None)) == (hvd.Average, hvd.Sum)
    with pytest.warns(DeprecationWarning, match="average"):
        assert chosen(None, False) == hvd.Sum
    with pytest.raises(ValueError, match="average"):
        chosen(hvd.Sum, True)


def functions_in_threads(hvd: Hvd) -> None:
    threads = _module(hvd, "horovod.runner.util.threads")
    called: list[int] = []
    threads.in_thread(called.append, (1,)).join()
    threads.in_thread(lambda: 1 / 0, silent=True).join()
    assert called == [1]
    with pytest.raises(ValueError, match="tuple"):
        threads.in_thread(called.append, 1)
    assert threads.execute_function_multithreaded(pow, [[2, 3], [3, 2]]) == {0: 8, 1: 9}


def loaders_that_read_ahead(hvd: Hvd) -> None:
    for ahead in (0, 64):
        loader = _loader(hvd)(async_loader_queue_size=ahead)
        assert list(loader) == [0, 2, 4, 6, 8]
        assert list(loader) == [0, 2, 4, 6, 8]
        loader.close_async_loader()


@ours_only("Horovod's close waits for a thread that waits for room")
def loaders_that_are_closed_before_their_end(hvd: Hvd) -> None:
    loader = _loader(hvd)(async_loader_queue_size=1)
    for _ in range(2):
        assert next(iter(loader)) == 0
        assert [t for t in threading.enumerate() if t.name == "data loader"] == []
    loader.close_async_loader()


def what_a_loader_raises_is_raised(hvd: Hvd) -> None:
    for ahead in (0, 64):
        loader = _loader(hvd)(fails=True, async_loader_queue_size=ahead)
        with pytest.raises(OSError, match="disk"):
            list(loader)
        loader.close_async_loader()


def handlers_of_states(hvd: Hvd) -> None:
    state = _module(hvd, "horovod.torch.elastic.state")
    before = list(state.get_handler_registry())

    class Handler(state.StateHandler):  # type: ignore[misc, name-defined]
        def save(self) -> None: ...
        def restore(self) -> None: ...
        def sync(self) -> None: ...

    state.set_handler_registry([(set, Handler), *before])
    try:
        assert isinstance(state.TorchState(seen={1})._handlers["seen"], Handler)
    finally:
        state.set_handler_registry(before)
    assert "seen" not in state.TorchState(seen={1})._handlers


def _loader(hvd: Hvd) -> Any:
    data = _module(hvd, "horovod.data")

    class Evens(data.AsyncDataLoaderMixin, data.BaseDataLoader):  # type: ignore[misc, name-defined]
        def __init__(self, fails: bool = False, **options: Any) -> None:
            self.fails = fails
            super().__init__(**options)

        def __len__(self) -> int:
            return 5

        def _iterate(self) -> Iterator[int]:
            yield from range(5)
            if self.fails:
                raise OSError("the disk is gone")

        def _process_batch(self, batch: int) -> int:
            return 2 * batch

    return Evens


def _module(hvd: Hvd, name: str) -> Any:
    if hvd.__name__ == OURS:
        from hvd_train.rank.horovod_import import ours

        name = ours(name)
    return importlib.import_module(name)


BODIES = bodies(globals())
