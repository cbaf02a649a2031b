"""`ddl serve` in this process: batches, limits, records, and a real server on a thread."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.input import Form, InputContext
from hvd_train.trained.inputs.arrays import Arrays
from hvd_train.trained.inputs.records import NO_MEDIA, Records
from hvd_train.trained.inputs.table import Table
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.serving import address, server
from hvd_train.trained.serving.address import listen
from hvd_train.trained.serving.answering import each
from hvd_train.trained.serving.assemble import assemble
from hvd_train.trained.serving.batching import Batcher, Policy, Queue, Request
from hvd_train.trained.serving.connection import Connection
from hvd_train.trained.serving.joined import Joined
from hvd_train.trained.serving.limits import Disconnected, Gate, read_body
from hvd_train.trained.serving.records import Bodies
from hvd_train.trained.serving.refusal import Refusal
from hvd_train.trained.serving.settings import Settings
from tests.bodies import trained

SECTION = read_section(DataSection, Document({"name": "digits"}, "test"))
TABLE = Table(
    InputContext(
        DataSpec((4,), 2, "classification"),
        {
            "columns": [
                {"name": "width", "kind": "number", "missing": None, "mean": 0.0, "deviation": 1.0},
                {"name": "height", "kind": "number", "missing": 1.5, "mean": 0.0, "deviation": 1.0},
                {"name": "size", "kind": "onehot", "categories": ["large", "small"]},
            ],
            "target": {"name": "bought"},
        },
        SECTION,
    )
).form()
SPEC = DataSpec((3,), 2, "classification")
ARRAYS = Arrays(InputContext(SPEC, {}, SECTION)).form()
PICTURES = Form(bytes, ("image/*", "application/octet-stream"))


def _decode(body: bytes) -> str:
    """Stand in for a kind that refuses a file."""
    if b"\xff" in body:
        raise UserError("byte 0 is not UTF-8")
    return body.decode()


TEXTS = Form(str, ("text/plain",), _decode)
ROW = {"width": 1.0, "height": 2.0, "size": "small"}
FACTS = {"run": "golden", "checkpoint": "step-00000060", "task": "classification"}


class Impatient(Connection):
    read_seconds = 0.3
    write_seconds = 0.3


class Small(Connection):
    head_bytes = 4096


CLOSED = r"reset|Broken pipe"


def total(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Stand in for a model of arrays: the sum of each; UserError for a negative first number."""
    if any(record[0] < 0 for record in records):
        raise UserError("the instance: found a negative number, expected 0 or more")
    return [{"value": sum(record)} for record in records]


# Batches


def _queue(*sizes: int, most: int = 4, wait: float = 2.0) -> tuple[Queue, list[Request]]:
    queue = Queue(Policy(most, wait))
    requests = [Request(list(range(size)), float(at)) for at, size in enumerate(sizes)]
    for request in requests:
        queue.add(request)
    return queue, requests


@pytest.mark.parametrize(
    ("sizes", "due", "counts"),
    [
        ((), math.inf, []),
        ((1,), 2.0, [1]),
        ((1, 1, 1), 2.0, [1, 1, 1]),
        ((1, 1, 1, 1), -math.inf, [1, 1, 1, 1]),
        ((3, 3), -math.inf, [3, 1]),
        ((9,), -math.inf, [4]),
    ],
)
def test_a_batch_is_due_when_it_is_full_or_its_oldest_record_has_waited(
    sizes: tuple[int, ...], due: float, counts: list[int]
) -> None:
    queue, requests = _queue(*sizes)
    assert queue.due() == due
    assert queue.take() == list(zip(requests, counts, strict=False))
    assert len(queue) == sum(sizes) - sum(counts)


def test_the_rest_of_a_divided_request_is_due_by_its_own_arrival() -> None:
    queue, requests = _queue(3, 3)
    queue.take()
    assert queue.due() == 3.0
    assert queue.take() == [(requests[1], 2)]
    assert queue.due() == math.inf


class Model:
    """A model that waits until it is released, and remembers its batches and threads."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()
        self.release = threading.Event()

    def __call__(self, records: list[Any]) -> list[Any]:
        self.batches.append(records)
        self.threads.add(threading.get_ident())
        assert self.release.wait(30)
        return [record * 10 for record in records]


def test_requests_that_arrive_while_the_model_runs_share_the_next_batches() -> None:
    model, seen = Model(), []

    async def work() -> list[list[Any]]:
        batcher = Batcher(model, Policy(4, 0.0), lambda records, seconds: seen.append(records))
        first = asyncio.ensure_future(batcher.answers([1]))
        while not model.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(batcher.answers(records)) for records in ([2], [3, 4, 5, 6, 7], [8])]
        await asyncio.sleep(0)
        assert batcher.waiting == 7
        model.release.set()
        answers = await asyncio.gather(first, *others)
        batcher.close()
        return list(answers)

    assert asyncio.run(work()) == [[10], [20], [30, 40, 50, 60, 70], [80]]
    assert model.batches == [[1], [2, 3, 4, 5], [6, 7, 8]]
    assert seen == [1, 4, 3]
    assert len(model.threads) == 1


def test_a_batch_waits_for_more_records_but_not_longer_than_max_wait() -> None:
    model = Model()
    model.release.set()

    async def work() -> None:
        batcher = Batcher(model, Policy(3, 3600.0))
        waiting = [asyncio.ensure_future(batcher.answers([i])) for i in (1, 2)]
        await asyncio.sleep(0.05)
        assert not model.batches
        await asyncio.gather(batcher.answers([3]), *waiting)
        assert model.batches == [[1, 2, 3]]
        batcher.close()
        batcher = Batcher(model, Policy(3, 0.01))
        assert await batcher.answers([4]) == [40]
        batcher.close()

    asyncio.run(work())


def test_an_exception_of_the_model_is_the_answer_to_its_batch_only() -> None:
    def fail(records: list[Any]) -> list[Any]:
        if 1 in records:
            raise MemoryError("too large")
        return records

    async def work() -> None:
        batcher = Batcher(fail, Policy(1, 0.0))
        failed, well = await asyncio.gather(batcher.answers([1, 2]), batcher.answers([3]))
        assert isinstance(failed[0], MemoryError)
        assert (failed[1], well) == (2, [3])
        batcher.close()

    asyncio.run(work())


def test_a_request_that_the_server_cancels_does_not_disturb_its_batch() -> None:
    model = Model()

    async def work() -> None:
        batcher = Batcher(model, Policy(2, 3600.0))
        first = asyncio.ensure_future(batcher.answers([1]))
        second = asyncio.ensure_future(batcher.answers([2]))
        await asyncio.sleep(0)
        first.cancel()
        model.release.set()
        assert await second == [20]
        batcher.close()

    asyncio.run(work())


def test_each_record_of_a_failed_batch_is_answered_alone() -> None:
    calls = []

    def predict(records: Sequence[Any]) -> list[dict[str, Any]]:
        calls.append(len(records))
        return total(records)

    answers = each(predict, [[1, 2], [-1, 2], [3, 4]])
    assert [answers[0], answers[2]] == [{"value": 3}, {"value": 7}]
    assert isinstance(answers[1], UserError)
    assert calls == [3, 1, 1, 1]


# Limits


def _receive(*pieces: bytes, ends: bool = True) -> tuple[Callable[[], Any], list[bytes]]:
    """Return an ASGI `receive` of these pieces of a body, and the list of those that it has returned."""
    given: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if len(given) == len(pieces):
            return {"type": "http.disconnect"}
        given.append(pieces[len(given)])
        return {"type": "http.request", "body": given[-1], "more_body": len(given) < len(pieces) or not ends}

    return receive, given


@pytest.mark.parametrize("pieces", [(b"abcd",), (b"ab", b"c", b"d"), (b"",)])
def test_a_body_within_the_limit_is_joined(pieces: tuple[bytes, ...]) -> None:
    receive, _ = _receive(*pieces)
    assert asyncio.run(read_body(receive, {}, 4)) == b"".join(pieces)


def test_a_body_is_refused_by_its_length_before_it_is_read() -> None:
    receive, given = _receive(b"abcde")
    with pytest.raises(Refusal) as refused:
        asyncio.run(read_body(receive, {b"content-length": b"5"}, 4))
    assert refused.value.status == 413
    assert given == []


def test_a_body_without_length_is_refused_at_the_first_piece_beyond_the_limit() -> None:
    receive, given = _receive(b"abc", b"de", b"fg")
    with pytest.raises(Refusal) as refused:
        asyncio.run(read_body(receive, {}, 4))
    assert refused.value.status == 413
    assert given == [b"abc", b"de"]


def test_a_client_that_goes_away_is_not_answered() -> None:
    receive, _ = _receive(b"abc", ends=False)
    with pytest.raises(Disconnected):
        asyncio.run(read_body(receive, {}, 4))


def test_a_gate_counts_the_requests_inside() -> None:
    gate = Gate(2)
    with gate.admitted(), gate.admitted():
        assert gate.inside == 2
        with pytest.raises(Refusal) as refused, gate.admitted():
            raise AssertionError
    assert refused.value.status == 503
    assert refused.value.headers == {"retry-after": "1"}
    assert gate.inside == 0


# Records


def _refused(bodies: Bodies, body: Any, content_type: str = "application/json") -> Refusal:
    with pytest.raises(Refusal) as refused:
        bodies.records(content_type, body if isinstance(body, bytes) else json.dumps(body).encode())
    return refused.value


def test_a_row_keeps_its_columns_and_may_lack_what_training_filled_in() -> None:
    bodies = Bodies(TABLE)
    body = {"instances": [{**ROW, "other": 1}, {**ROW, "height": None, "size": "unknown"}]}
    assert bodies.records("application/json; charset=utf-8", json.dumps(body).encode()) == [
        ROW,
        {**ROW, "height": None, "size": "unknown"},
    ]


@pytest.mark.parametrize(
    ("row", "loc", "message"),
    [
        ({**ROW, "width": "wide"}, "width", "valid number"),
        ({**ROW, "width": None}, "width", "valid number"),
        ({**ROW, "width": math.nan}, "width", "finite number"),
        ({**ROW, "height": math.inf}, "height", "finite number"),
        ({**ROW, "size": 3}, "size", "valid string"),
        ({"widht": 1.0, "height": 2.0, "size": "small"}, "width", "required; did you mean 'widht'?"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(row: dict[str, Any], loc: str, message: str) -> None:
    refusal = _refused(Bodies(TABLE), {"instances": [ROW, row]})
    assert refusal.status == 422
    assert isinstance(refusal.detail, list)
    assert refusal.detail[0]["loc"] == ["body", "instances", 1, loc]
    assert message in refusal.detail[0]["msg"]


def test_all_wrong_fields_of_a_record_are_named() -> None:
    refusal = _refused(Bodies(TABLE), {"instances": [{"width": "x", "height": "y", "size": 1}]})
    assert [one["loc"][-1] for one in refusal.detail] == ["width", "height", "size"]


def test_a_flood_of_errors_is_answered_shortly() -> None:
    refusal = _refused(Bodies(ARRAYS), {"instances": ["x" * 1000] * 1000})
    assert len(json.dumps(refusal.detail)) < 1000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b'{"instances": [[1, 2, 3]', 400),
        (b"[" * 100_000, 400),
        (b'{"instances": [[1, 2, "\xff"]]}', 400),
        (b"[[1, 2, 3]]", 422),
        (b'{"records": [[1, 2, 3]]}', 422),
        (b'{"instances": []}', 422),
        (b'{"instances": [[1, 2]]}', 422),
        (b'{"instances": [[1, 2, 3, 4]]}', 422),
        (b'{"instances": [[1, 2, [3]]]}', 422),
        (b'{"instances": [[1, 2, 1e999]]}', 422),
    ],
    ids=range(11),
)
def test_a_body_that_is_no_array_of_the_model_is_refused(body: bytes, status: int) -> None:
    assert _refused(Bodies(ARRAYS), body).status == status


@pytest.mark.parametrize(
    ("of", "content_type", "body", "record"),
    [
        (PICTURES, "image/jpeg", b"\xff\xd8", b"\xff\xd8"),
        (PICTURES, "application/octet-stream", b"\xff\xd8", b"\xff\xd8"),
        (TEXTS, "text/plain; charset=utf-8", "Grüße".encode(), "Grüße"),
        (PICTURES, "application/json", json.dumps({"instances": [base64.b64encode(b"ab").decode()]}).encode(), b"ab"),
        (TEXTS, "", b'{"instances": ["once"]}', "once"),
    ],
)
def test_a_body_may_be_one_file_or_text(of: Form, content_type: str, body: bytes, record: Any) -> None:
    assert Bodies(of).records(content_type, body) == [record]


@pytest.mark.parametrize(
    ("of", "content_type", "body", "status"),
    [
        (PICTURES, "audio/wav", b"RIFF", 415),
        (TEXTS, "text/plain", b"\xff", 422),
        (TABLE, "application/x-www-form-urlencoded", b"{}", 415),
        (PICTURES, "application/json", b'{"instances": ["no base64!"]}', 422),
    ],
)
def test_another_content_is_refused(of: Form, content_type: str, body: bytes, status: int) -> None:
    assert _refused(Bodies(of), body, content_type).status == status


@pytest.fixture(scope="module", params=["images", "audio"])
def media(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Path, str]:
    """A predictor of files, one of the files, and their content type."""
    folder = tmp_path_factory.mktemp(request.param)
    predictor = Predictor(load_model(find_run(trained.KINDS[request.param](folder))))
    if request.param == "images":
        return predictor, folder / "pictures" / "light" / "00.jpg", "image/jpeg"
    return predictor, folder / "sounds" / "high" / "00.wav", "audio/wav"


def test_a_file_is_read_from_the_body_and_never_from_a_path(media: tuple[Predictor, Path, str]) -> None:
    predictor, file, content_type = media
    bodies, content = Bodies(predictor.input.form()), file.read_bytes()
    in_json = json.dumps({"instances": [base64.b64encode(content).decode()]}).encode()
    assert bodies.records(content_type, content) == bodies.records("application/json", in_json) == [content]
    assert predictor.predict([content])[0]["class"] == file.parent.name
    (record,) = bodies.records("application/json", _instances(["/etc/hostsab"]))
    assert record == base64.b64decode("/etc/hostsab")
    assert _refused(bodies, {"instances": [str(file)]}).status == 422


def test_a_picture_in_a_record_is_bytes_without_a_path() -> None:
    facts = {"inputs": "image", "target": None, "predicts": "value", "floats": [], "columns": {"image": "png"}}
    document = {"input": {**facts, "media": NO_MEDIA.document, "length": None}}
    bodies = Bodies(Records(InputContext(SPEC, document, SECTION)).form())
    both = {"bytes": "YWI=", "path": "/etc/hostname"}
    assert bodies.records("", _instances([{"image": both, "id": 1}])) == [{"image": {"bytes": b"ab"}}]
    assert _refused(bodies, {"instances": [{"image": {"bytes": None, "path": "/etc/hostname"}}]}).status == 422


def test_a_language_model_takes_texts(tmp_path: Path) -> None:
    predictor = Predictor(load_model(find_run(trained.text(tmp_path))), tokens=2)
    bodies = Bodies(predictor.input.form())
    records = [*bodies.records("text/plain; charset=utf-8", b"the quick"), *bodies.records("", _instances(["brown"]))]
    assert records == ["the quick", "brown"]
    assert len(predictor.predict(records)) == 2
    assert _refused(bodies, b"\xff", "text/plain").detail[0]["msg"].startswith("the body: byte 0 is 0xff")


def _instances(records: list[Any]) -> bytes:
    return json.dumps({"instances": records}).encode()


def test_settings_pass_through_argv() -> None:
    settings = Settings("runs/a b", 3, max_body_mb=0.5, threads=2)
    assert Settings.from_text(settings.to_text()) == settings
    assert settings.max_body == 500_000


# A server


@contextmanager
def serving(
    predict: Callable[[list[Any]], list[dict[str, Any]]] = total,
    of: Form | None = None,
    connection: type[Connection] = Connection,
    **options: Any,
) -> Iterator[tuple[server.Server, str]]:
    """Serve arrays of three numbers on a thread; yield the server and its address."""
    settings = Settings("golden", 0, **{"max_wait_ms": 1.0, **options})
    service = assemble(predict, of or ARRAYS, settings, FACTS)
    opened = listen("127.0.0.1", 0)
    running = server.create(service.app, connection)
    thread = threading.Thread(target=running.run, args=([opened],))
    thread.start()
    try:
        yield running, address.url(opened)
    finally:
        running.should_exit = True
        thread.join()
        service.close()


def _connect(url: str) -> socket.socket:
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _read_all(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes or resets the connection."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def test_the_pages_of_a_server() -> None:
    with serving() as (_, url):
        answer = httpx.post(f"{url}/predict", json={"instances": [[1, 2, 3], [4, 5, 6]]})
        assert (answer.status_code, answer.json()) == (200, {"predictions": [{"value": 6}, {"value": 15}]})
        wrong = httpx.post(f"{url}/predict", json={"instances": [[1, 2, 3], [-1, 5, 6]]})
        message = "the instance: found a negative number, expected 0 or more"
        assert (wrong.status_code, wrong.json()) == (
            422,
            {"detail": [{"loc": ["body", "instances", 1], "msg": message}]},
        )
        assert httpx.get(f"{url}/predict").status_code == 405
        assert httpx.get(f"{url}/nothing").status_code == 404
        assert httpx.get(f"{url}/health").json() == {"status": "ok", **FACTS}
        metrics = httpx.get(f"{url}/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        for line in (
            'ddl_requests_total{status="200"} 1.0',
            'ddl_requests_total{status="422"} 1.0',
            "ddl_request_seconds_count 2.0",
            "ddl_batch_records_sum 4.0",
            "ddl_batch_records_count 2.0",
            "ddl_queue_records 0.0",
            "ddl_requests_in_progress 0.0",
        ):
            assert line in metrics.text.splitlines()
        assert "swagger" in httpx.get(f"{url}/docs").text


def test_the_openapi_document_has_the_fields_of_the_model() -> None:
    with serving(of=TABLE) as (_, url):
        document = httpx.get(f"{url}/openapi.json").json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"]["properties"]["instances"]["items"] == {"$ref": "#/components/schemas/Row"}
    row = document["components"]["schemas"]["Row"]
    assert list(row["properties"]) == row["required"] == ["width", "height", "size"]
    assert row["properties"]["width"]["type"] == "number"
    assert row["properties"]["size"]["examples"] == ["large", "small"]


def test_a_failing_model_is_a_500_for_its_own_request() -> None:
    def predict(records: list[Any]) -> list[dict[str, Any]]:
        if any(record[0] == 7 for record in records):
            raise RuntimeError("inside")
        return total(records)

    async def work(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient() as client:
            posts = [client.post(f"{url}/predict", json={"instances": [[first, 0, 0]]}) for first in (1, 7, -1, 2)]
            return await asyncio.gather(*posts)

    with serving(predict, max_wait_ms=200.0, max_batch=4) as (_, url):
        answers = asyncio.run(work(url))
    assert [answer.status_code for answer in answers] == [200, 500, 422, 200]
    assert answers[1].json() == {"detail": "the model failed: RuntimeError"}


def test_a_body_above_the_limit_is_refused_while_the_client_sends() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000_000

    with serving(max_body_mb=1.0) as (_, url):
        for content in (b" " * 100_000_000, pieces()):
            answer = httpx.post(f"{url}/predict", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413
            assert answer.json() == {"detail": "the body of the request is larger than 1 MB, the limit of this server"}
        assert httpx.post(f"{url}/predict", json={"instances": [[1, 2, 3]]}).status_code == 200


def test_more_requests_than_the_limit_are_told_to_try_again() -> None:
    model = Model()
    with serving(lambda records: [{"n": 0} for _ in model(records)], max_concurrency=2) as (_, url):
        with httpx.Client(base_url=url, timeout=30) as client:
            slow = [threading.Thread(target=httpx.post, args=(f"{url}/predict",), kwargs=_one()) for _ in range(2)]
            for thread in slow:
                thread.start()
            while "ddl_requests_in_progress 2.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            refused = client.post("/predict", **_one())
            model.release.set()
            for thread in slow:
                thread.join()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert client.post("/predict", **_one()).status_code == 200


def _one() -> dict[str, Any]:
    return {"json": {"instances": [[1, 2, 3]]}, "timeout": 30}


HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /predict HTT",
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Content-Length: 9999999999\r\n\r\n{",
    ],
    ids=["silent", "line", "head", "body", "huge"],
)
def test_a_connection_that_stalls_is_closed(start: bytes) -> None:
    with serving(connection=Impatient) as (_, url), _connect(url) as connection:
        connection.sendall(start)
        _read_all(connection)


def test_a_connection_that_trickles_is_closed() -> None:
    with serving(connection=Impatient) as (_, url), _connect(url) as connection, pytest.raises(OSError, match=CLOSED):
        _send_pieces(connection, HEAD, b"X-A: b\r\n", 0.02)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (HEAD, b"X-A: " + b"b" * 1000 + b"\r\n"),
        (HEAD + b"X-B: ", b"b" * 1000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X-A: b\r\n" * 100),
    ],
    ids=["fields", "one field", "trailers"],
)
def test_a_head_without_end_is_refused(start: bytes, piece: bytes) -> None:
    with serving(connection=Small) as (_, url), _connect(url) as connection, pytest.raises(OSError, match=CLOSED):
        _send_pieces(connection, start, piece, 0.001)


def _send_pieces(connection: socket.socket, start: bytes, piece: bytes, seconds: float) -> None:
    connection.sendall(start)
    for _ in range(10_000):
        connection.sendall(piece)
        time.sleep(seconds)


def test_a_client_that_waits_to_send_its_body_is_told_to_continue() -> None:
    with serving() as (_, url), _connect(url) as connection:
        connection.sendall(HEAD + b"Content-Length: 26\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"instances": [[1, 2, 3]]}')
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b'\r\n\r\n{"predictions":[{"value":6.0}]}')


class Wire(asyncio.Transport):
    """A transport that records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.written.append(b"closed")


def test_a_head_is_written_with_the_body_that_follows_at_once() -> None:
    async def work(wire: Wire) -> None:
        joined = Joined(wire, asyncio.get_running_loop())
        joined.write(b"HTTP/1.1 200 OK")
        joined.write(b"body")
        joined.write(b"more")
        joined.write(b"HTTP/1.1 100 Continue")
        await asyncio.sleep(0)
        joined.write(b"HTTP/1.1 204 No Content")
        joined.close()

    wire = Wire()
    asyncio.run(work(wire))
    assert wire.written == [
        b"HTTP/1.1 200 OKbody",
        b"more",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 204 No Content",
        b"closed",
    ]


def test_an_answer_that_nobody_reads_ends_the_connection() -> None:
    def predict(records: list[Any]) -> list[dict[str, Any]]:
        return [{"value": "x" * 30_000_000} for _ in records]

    with serving(predict, connection=Impatient) as (running, url), _connect(url) as connection:
        body = b'{"instances": [[1, 2, 3]]}'
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while not running.server_state.connections:
            time.sleep(0.01)
        while running.server_state.connections:
            time.sleep(0.01)


def test_clients_that_disconnect_do_not_disturb_a_batch() -> None:
    model = Model()
    with serving(lambda records: [{"n": 1} for _ in model(records)], max_batch=4) as (_, url):
        body = b'{"instances": [[1, 2, 3]]}'
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        gone = [_connect(url) for _ in range(3)]
        for connection in gone:
            connection.sendall(request)
        with _connect(url) as stays, httpx.Client(base_url=url, timeout=30) as client:
            stays.sendall(request)
            while "ddl_requests_in_progress 4.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            for connection in gone:
                connection.close()
            model.release.set()
            assert stays.recv(65536).startswith(b"HTTP/1.1 200 OK")
            assert client.post("/predict", **_one()).status_code == 200


def test_a_server_that_ends_answers_what_it_has_accepted() -> None:
    model, answers = Model(), []
    with serving(lambda records: [{"n": 1} for _ in model(records)], max_batch=2) as (running, url):
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/predict", **_one()))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=url) as client:
            while "ddl_requests_in_progress 6.0" not in client.get("/metrics").text:
                time.sleep(0.01)
        running.should_exit = True
        while True:
            try:
                _connect(url).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.01)
        model.release.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("127.0.0.1", "in use on 127.0.0.1; give another one, or --port 0 for any free port"),
        ("203.0.113.7", "--host: '203.0.113.7' is no address of this machine"),
        ("no.such.host.invalid", "--host: 'no.such.host.invalid' has no address"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_sentence(host: str, message: str) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError) as refused:
        listen(host, taken.getsockname()[1])
    assert message in str(refused.value)


def test_the_url_of_an_address_of_ipv6_has_brackets() -> None:
    with listen("::1", 0) as opened:
        assert address.url(opened) == f"http://[::1]:{opened.getsockname()[1]}"
