"""The bodies of the Horovod-compatible API under `mpirun`, on the module that `--hvd` names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.bodies.horovod_api import BODIES, LIFECYCLE
from tests.bodies.horovod_api.base import OURS, WORLD, Body, Hvd, same, works


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "body" in metafunc.fixturenames:
        ours = metafunc.config.getoption("--hvd") == OURS
        family = LIFECYCLE if metafunc.function is test_lifecycle else BODIES
        chosen = [body for body in family if ours or not hasattr(body, "ours_only")]
        metafunc.parametrize("body", chosen, ids=[f"{b.__module__.rpartition('.')[2]}-{b.__name__}" for b in chosen])


@pytest.fixture
def hvd(module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hvd]:
    """The API, initialized for each body and checked after it."""
    monkeypatch.setenv("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    module.init()
    yield module
    works(module)
    WORLD.Barrier()
    module.shutdown()


def test_body(body: Body, hvd: Hvd) -> None:
    body(hvd)


def test_a_stall_names_the_tensor_and_the_ranks_that_are_missing(
    module: Hvd, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last rank is late, and then all ranks go on."""
    monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", "1")
    module.init()
    if module.rank() == module.size() - 1:
        time.sleep(2.5)
    same(module.allreduce(torch.ones(1), op=module.Sum, name="late.tensor"), torch.tensor([float(module.size())]))
    said = capfd.readouterr().err
    WORLD.Barrier()
    module.shutdown()
    late = WORLD.size - 1
    if WORLD.rank == 0 and late:
        assert re.search(rf"late\.tensor.* {late}\b|^{late}: .*late\.tensor", said, re.MULTILINE), said


def test_lifecycle(body: Body, module: Hvd) -> None:
    body(module)
