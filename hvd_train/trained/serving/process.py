"""Load the model of a run and serve it."""

from __future__ import annotations

import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hvd_train.saved.model import load_model
from hvd_train.saved.run import Run, find_run
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.serving import address, server
from hvd_train.trained.serving.assemble import Service, assemble
from hvd_train.trained.serving.settings import Settings

SWITCH_SECONDS = 0.0005
"""The thread of the model waits this long for the interpreter lock, instead of 5 ms."""


def serve(settings: Settings) -> None:
    """Serve a run until a signal; UserError if it cannot be served."""
    run = find_run(Path(settings.run))
    sys.path[:0] = run.search_path
    sys.setswitchinterval(SWITCH_SECONDS)
    service = _service(run, settings)
    running = server.create(service.app)
    running.end_on_signals()
    opened = socket.socket(fileno=settings.descriptor)
    print(f"serving {run.checkpoint} at {address.url(opened)}; Ctrl-C ends", flush=True)
    running.run([opened])
    service.close()


def _service(run: Run, settings: Settings) -> Service:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    loaded = load_model(run)
    predictor = Predictor(loaded)
    facts = {"run": run.folder.name, "checkpoint": run.checkpoint.name, "task": loaded.spec.task}
    return assemble(partial(_predict, predictor), predictor.input.form(), settings, facts)


def _predict(predictor: Predictor, records: list[Any]) -> list[dict[str, Any]]:
    return predictor.predict(records, lambda _: "the instance")
