"""pytest on every rank.

Run `mpirun -np 2 python -m mpi4py -m pytest tests/parallel -x --engine mpi -p no:cacheprovider`.
All ranks run the same tests in the same order. After a failure on one rank the others wait in a
collective, so this rank prints its report and ends the job.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.config import plugins

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", default="mpi", help="the engine under test")
    parser.addoption("--hvd", default="hvd_train.torch", help="the Horovod-compatible module under test")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if RANK:
        config.pluginmanager.unregister(name="terminalreporter")


@pytest.fixture(scope="session")
def comm(request: pytest.FixtureRequest) -> Iterator[Communicator]:
    world = plugins.create("hvd_train.comm.engines", request.config.getoption("--engine", default="mpi"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def module(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.config.getoption("--hvd"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        abort(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if report.failed:
        abort(collector.config, report)
    return report


def abort(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Print `report` and end every rank of the job."""
    from mpi4py import MPI

    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nrank {RANK}: {report.nodeid} failed\n{report.longreprtext}", file=sys.stderr, flush=True)
        for title, text in report.sections:
            print(f"--- {title}\n{text}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)
