"""A bare FastAPI route with the model of a run: no batches, no limits, no metrics.

Usage: `python -m benchmarks.serving_bare RUN PORT def|async`. A route by `def` runs on FastAPI's
threads, one by `async def` on the event loop.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run


class Body(BaseModel):
    instances: list[list[list[list[float]]]]


class Predictions(BaseModel):
    predictions: list[dict[str, float]]


def application(run: Path, kind: str) -> FastAPI:
    app, model = FastAPI(), load_model(find_run(run)).module

    def predict(body: Body) -> Any:
        with torch.inference_mode():
            values, codes = model(torch.tensor(body.instances)).softmax(-1).max(-1)
        pairs = zip(codes.tolist(), values.tolist(), strict=True)
        return {"predictions": [{"class": code, "probability": value} for code, value in pairs]}

    async def predict_here(body: Body) -> Any:
        return predict(body)

    app.post("/predict", response_model=Predictions)(predict if kind == "def" else predict_here)
    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    served = application(Path(sys.argv[1]), sys.argv[3])
    uvicorn.run(served, port=int(sys.argv[2]), log_level="warning", access_log=False)
