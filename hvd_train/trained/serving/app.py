"""The HTTP interface of a model: `POST /predict`, `GET /health`, `GET /metrics`, `GET /docs`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.routing import Route

from hvd_train.errors import UserError
from hvd_train.trained.serving.batching import Answer, Batcher
from hvd_train.trained.serving.limits import Disconnected, Gate, Receive, read_body
from hvd_train.trained.serving.metrics import Metrics
from hvd_train.trained.serving.records import JSON, Bodies, at_record
from hvd_train.trained.serving.refusal import Refusal

PREDICT = "/predict"
_SCHEMA = {
    "type": "object",
    "properties": {"predictions": {"type": "array", "items": {"type": "object"}}},
    "required": ["predictions"],
}
_REFUSALS = {
    400: "The body is not valid JSON.",
    413: "The body is too large.",
    415: "The server does not read this content type.",
    422: "A field is wrong; `detail` says which one, and what was expected.",
    500: "The model failed.",
    503: "The server is busy; `Retry-After` says when to try again.",
}

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP, whose content is JSON."""

    status: int
    content: Any
    headers: Mapping[str, str]


class Predict:
    """Answers `POST /predict`, as an ASGI application."""

    def __init__(self, bodies: Bodies, batcher: Batcher, gate: Gate, metrics: Metrics, max_body: int) -> None:
        self._bodies, self._batcher, self._gate = bodies, batcher, gate
        self._metrics, self._max_body = metrics, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        try:
            reply = await self._reply(scope, receive)
        except Disconnected:
            return
        await _send(send, reply)
        self._metrics.request(reply.status, perf_counter() - started)

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        try:
            with self._gate.admitted():
                return Reply(200, await self._predictions(dict(scope["headers"]), receive), {})
        except Refusal as refusal:
            return Reply(refusal.status, {"detail": refusal.detail}, refusal.headers)

    async def _predictions(self, headers: Mapping[bytes, bytes], receive: Receive) -> dict[str, Any]:
        body = await read_body(receive, headers, self._max_body)
        records = self._bodies.records(headers.get(b"content-type", b"").decode("latin-1"), body)
        answers = await self._batcher.answers(records)
        if any(isinstance(answer, Exception) for answer in answers):
            raise _refusal(answers)
        return {"predictions": answers}


def create(predict: Predict, bodies: Bodies, metrics: Metrics, facts: Mapping[str, Any]) -> App:
    """Return the ASGI application. `facts` about the model are the answer of `/health`."""
    pages = _Pages(bodies, title=f"ddl serve: {facts['run']}", description=f"Checkpoint {facts['checkpoint']}.")
    pages.router.routes.append(Route(PREDICT, predict, methods=["POST"]))

    @pages.get("/health", summary="The model that is served")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **facts}

    @pages.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The middlewares and the router of FastAPI take longer than the rest of a request.
        is_predict = scope["type"] == "http" and scope["path"] == PREDICT and scope["method"] == "POST"
        await (predict if is_predict else pages)(scope, receive, send)

    return app


class _Pages(FastAPI):
    """FastAPI with `/predict` in its OpenAPI document, whose fields depend on the model."""

    def __init__(self, bodies: Bodies, **options: Any) -> None:
        super().__init__(**options)
        self._bodies = bodies

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document, (content, components) = super().openapi(), self._bodies.schema()
            document["paths"][PREDICT] = {"post": _operation(content)}
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return super().openapi()


def _operation(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of `/predict` for OpenAPI, from that of its body."""
    answer = {"description": "One prediction for each instance.", "content": {JSON: {"schema": _SCHEMA}}}
    refusals = {str(status): {"description": text} for status, text in _REFUSALS.items()}
    return {
        "summary": "Predict",
        "operationId": "predict",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": answer, **refusals},
    }


def _refusal(answers: Sequence[Answer]) -> Refusal:
    """Return the refusal of a request of which some records have no answer."""
    failed = [answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, UserError)]
    if failed:
        log.error("the model failed", exc_info=failed[0])
        return Refusal(500, f"the model failed: {type(failed[0]).__name__}")
    return Refusal(
        422, [at_record(i, str(answer)) for i, answer in enumerate(answers) if isinstance(answer, UserError)]
    )


async def _send(send: Send, reply: Reply) -> None:
    body = to_json(reply.content, inf_nan_mode="null")
    headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    # The connection stays open: uvicorn drops the rest of a body that is refused. A client that
    # still sends would lose the answer if its connection were reset.
    await send({"type": "http.response.body", "body": body})
