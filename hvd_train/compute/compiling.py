"""Compiles a model by torch.compile."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from hvd_train.config.schema import Config
from hvd_train.errors import UserError


def compile_(model: nn.Module, config: Config) -> None:
    """Let calls of `model` run compiled code; the names of its parameters and buffers stay.

    Raise UserError if the model is divided or there is no C++ compiler.
    """
    if config.parallel.pipeline * config.parallel.tensor > 1:
        raise UserError(
            "train.compile: parallel divides the model into layers that are called one by one; leave compile out, or set "
            "parallel.pipeline and parallel.tensor to 1"
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"train.compile: it needs a C++ compiler, and there is no '{compiler}' on this host; install g++, set the "
            "environment variable CXX to a compiler, or leave train.compile out"
        )

    # torch does not compile modules of its own, such as nn.Sequential, unless a function of other
    # code calls them.
    def call(*arguments: Any, **keywords: Any) -> Any:
        return model._call_impl(*arguments, **keywords)

    model._compiled_call_impl = torch.compile(call)  # type: ignore[assignment]
