"""Strategies are put together from small values: inheritance in `hvd_train.sync` is shallow."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Generic, Protocol

import pytest

import hvd_train.sync


def _classes() -> Iterator[type]:
    for module in pkgutil.walk_packages(hvd_train.sync.__path__, "hvd_train.sync."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name:
                yield cls


CLASSES = list(_classes())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_inheritance_is_one_level_deep(cls: type) -> None:
    chain = [base for base in cls.__mro__ if base.__module__.startswith("hvd_train")]
    assert len(chain) <= 2, chain


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_no_class_has_two_bases(cls: type) -> None:
    bases = [base for base in cls.__bases__ if base not in (Protocol, Generic)]
    assert len(bases) <= 1, bases
