"""Wires the parts of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hvd_train.trained.input import Form
from hvd_train.trained.serving import app
from hvd_train.trained.serving.answering import Predict, each
from hvd_train.trained.serving.batching import Batcher, Policy
from hvd_train.trained.serving.limits import Gate
from hvd_train.trained.serving.metrics import Metrics
from hvd_train.trained.serving.records import Bodies
from hvd_train.trained.serving.settings import Settings


@dataclass(frozen=True)
class Service:
    """An ASGI application, and the end of its model thread."""

    app: app.App
    close: Callable[[], None]


def assemble(predict: Predict, form: Form, settings: Settings, facts: Mapping[str, Any]) -> Service:
    """Return the service of a model. `facts` about it are the answer of `/health`."""
    gate, bodies = Gate(settings.max_concurrency), Bodies(form)
    metrics = Metrics(lambda: batcher.waiting, lambda: gate.inside)
    policy = Policy(settings.max_batch, settings.max_wait_ms / 1000)
    batcher = Batcher(partial(each, predict), policy, metrics.batch)
    endpoint = app.Predict(bodies, batcher, gate, metrics, settings.max_body)
    return Service(app.create(endpoint, bodies, metrics, facts), batcher.close)
