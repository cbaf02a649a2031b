"""`ddl serve` from outside: real runs, many clients at a time, and the end of the server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from cli.output import packages
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.predicting.predictor import Predictor
from tests.bodies import trained
from tests.integration.ddl import ddl_here, start

CLIENTS = 64
ROW = {"width": 1.0, "height": 0.5, "size": "small"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.table(tmp_path_factory.mktemp("table"))


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a run on a free port; yield the process and its address."""
    process = start("serve", run, "--port", "0", *options, cwd=run)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://\S+(?=;)", line)
        assert url, line + process.communicate()[1]
        yield process, url[0]
    finally:
        process.kill()
        process.communicate()


def test_many_clients_get_the_answers_of_the_predictor(digits: Path) -> None:
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 17, (CLIENTS * 4, 1, 8, 8)) / 16
    expected = Predictor(load_model(find_run(digits))).predict(inputs.tolist())

    async def client(url: str, share: list[Any]) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=60) as session:
            answers = [await session.post(f"{url}/predict", json={"instances": [x]}) for x in share]
        return [answer.json()["predictions"][0] for answer in answers]

    async def work(url: str) -> list[list[dict[str, Any]]]:
        shares = np.split(inputs, CLIENTS)
        return await asyncio.gather(*(client(url, share.tolist()) for share in shares))

    with serving(digits, "--max-batch", "16") as (process, url):
        found = [answer for share in asyncio.run(work(url)) for answer in share]
        metrics = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert [one["class"] for one in found] == [one["class"] for one in expected]
    np.testing.assert_allclose(
        [one["probability"] for one in found], [one["probability"] for one in expected], rtol=1e-5
    )
    assert f'ddl_requests_total{{status="200"}} {CLIENTS * 4}.0' in metrics
    batches = re.search(r"^ddl_batch_records_count (\d+)", metrics, re.MULTILINE)
    assert batches
    assert int(batches[1]) < CLIENTS * 4


def test_a_server_that_gets_a_signal_under_load_answers_and_exits_with_0(digits: Path) -> None:
    answered: list[int] = []

    async def client(url: str) -> None:
        async with httpx.AsyncClient(timeout=60) as session:
            while True:
                try:
                    answer = await session.post(f"{url}/predict", json={"instances": [[[[0.5] * 8] * 8]]})
                except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
                    return  # the server had not accepted the request
                answered.append(answer.status_code)

    async def work(process: subprocess.Popen[str], url: str) -> None:
        clients = [asyncio.ensure_future(client(url)) for _ in range(16)]
        while len(answered) < 100:
            await asyncio.sleep(0.01)
        process.terminate()
        await asyncio.gather(*clients)

    with serving(digits) as (process, url):
        asyncio.run(work(process, url))
        assert process.wait(60) == 0
        assert process.communicate() == ("", "")
    assert set(answered) == {200}


def test_rows_are_answered_with_the_names_of_classes(table: Path) -> None:
    with serving(table, "--threads", "1", "--max-body-mb", "0.01") as (process, url):
        answer = httpx.post(f"{url}/predict", json={"instances": [ROW, {**ROW, "width": -2.0, "size": "huge"}]})
        assert [one["class"] for one in answer.json()["predictions"]] == ["yes", "no"]
        wrong = httpx.post(f"{url}/predict", json={"instances": [{**ROW, "width": "wide", "height": None}]})
        assert wrong.status_code == 422
        assert [one["loc"][-1] for one in wrong.json()["detail"]] == ["width", "height"]
        far = httpx.post(f"{url}/predict", json={"instances": [ROW, {**ROW, "height": 1e300}]})
        assert far.json() == {
            "detail": [
                {
                    "loc": ["body", "instances", 1],
                    "msg": "the instance: column 'height': not finite in float32, expected a number of at most 3.4e+38",
                }
            ]
        }
        assert httpx.post(f"{url}/predict", content=b" " * 10_001).status_code == 413
        assert set(httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["Row"]["properties"]) == set(ROW)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_is_loaded_ends_without_a_traceback(table: Path, number: int) -> None:
    process = start("serve", table, "--port", "0", cwd=table)
    while "hvd_train.trained.serving" not in psutil.Process(process.pid).cmdline():
        time.sleep(0.01)
    while not _has_torch(process.pid):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def _has_torch(process: int) -> bool:
    return any("torch" in one.path for one in psutil.Process(process).memory_maps())


def test_a_port_in_use_is_one_sentence(table: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = ddl_here("serve", table, "--port", port, cwd=table)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"ddl: --port: {port} is in use on 127.0.0.1; give another one, or --port 0 for any free port\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no such folder; expected the run folder of a YAML file"),
        ([".", "--port", "70000"], "Invalid value for '--port'"),
        ([".", "--max-batch", "0"], "Invalid value for '--max-batch'"),
    ],
)
def test_bad_input_is_one_sentence(table: Path, words: list[str], message: str) -> None:
    done = ddl_here("serve", *words, cwd=table)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_missing_package_is_named_with_its_extra(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "uvicorn" else os)
    done = ddl_here("serve", table, cwd=table)
    needs = "serve needs uvicorn, which is not installed"
    assert done.returncode == 2
    assert done.stderr == f"ddl: {needs}; in a checkout of ddl, run pip install -e '.[serve]'\n"
