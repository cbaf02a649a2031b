"""State that training resumes from after a failure.

It is kept in the memory of each process and broadcast from rank 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import nn

from hvd_train.torch.elastic.sampler import ElasticSampler
from hvd_train.torch.exceptions import HostsUpdatedInterrupt
from hvd_train.torch.functions import broadcast_object, broadcast_optimizer_state, broadcast_parameters
from hvd_train.torch.mpi_ops import rank

REMOVED = 1
"""The change of hosts in which none is added. As bits, 1 is removed and 2 is added."""

_ROOT = 0


class State:
    """The contract of a state. `bcast_object` broadcasts an object from rank 0."""

    def __init__(self, bcast_object: Callable[..., Any], get_rank: Callable[[], int]) -> None:
        self._bcast_object, self._rank = bcast_object, get_rank
        self._host_messages: SimpleQueue[tuple[float, int]] = SimpleQueue()
        self._last_updated_timestamp = 0.0
        self._reset_callbacks: list[Callable[[], object]] = []

    def register_reset_callbacks(self, callbacks: Iterable[Callable[[], object]]) -> None:
        """Register functions to call after `reset` whenever the ranks have changed."""
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        self._messages()
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def on_hosts_updated(self, timestamp: float, update_res: int) -> None:
        """Record a change of hosts: its time and kind. Any thread may call this."""
        self._host_messages.put((timestamp, update_res))

    def commit(self) -> None:
        """Save the state. Raise HostsUpdatedInterrupt if the hosts have changed."""
        self.save()
        self.check_host_updates()

    def check_host_updates(self) -> None:
        """Raise HostsUpdatedInterrupt on all ranks if rank 0 has recorded a change of hosts."""
        before = self._last_updated_timestamp
        latest, changes = before, 0
        for timestamp, change in self._messages():
            if timestamp > latest:
                latest, changes = timestamp, changes | change
        before, latest, changes = self._bcast_object((before, latest, changes))
        self._last_updated_timestamp = latest
        if latest > before:
            raise HostsUpdatedInterrupt(changes == REMOVED)

    def save(self) -> None:
        """Save the current state in memory."""
        raise NotImplementedError

    def restore(self) -> None:
        """Restore the saved state."""
        raise NotImplementedError

    def sync(self) -> None:
        """Replace the state with that of rank 0."""
        raise NotImplementedError

    def reset(self) -> None:
        """Adapt to the new ranks. `sync` follows."""

    def _messages(self) -> list[tuple[float, int]]:
        messages = []
        while True:
            try:
                messages.append(self._host_messages.get_nowait())
            except Empty:
                return messages


class ObjectState(State):
    """A state of Python objects, each an attribute."""

    def __init__(self, bcast_object: Callable[..., Any], get_rank: Callable[[], int], **kwargs: Any) -> None:
        self._saved_state = kwargs
        self._set_attrs()
        super().__init__(bcast_object, get_rank)

    def save(self) -> None:
        self._saved_state = {name: copy.deepcopy(getattr(self, name)) for name in self._saved_state}

    def restore(self) -> None:
        self._set_attrs()

    def sync(self) -> None:
        if self._saved_state:
            self._saved_state = self._bcast_object(self._saved_state)
            self._set_attrs()

    def _set_attrs(self) -> None:
        for name, value in self._saved_state.items():
            setattr(self, name, copy.deepcopy(value))


class StateHandler:
    """Saves, restores and synchronizes one object."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.save()

    def save(self) -> None:
        self._saved = copy.deepcopy(self.value.state_dict())

    def restore(self) -> None:
        self.value.load_state_dict(self._saved)

    def sync(self) -> None:
        """Replace the value with that of rank 0 and save it."""
        raise NotImplementedError

    def set_value(self, value: Any) -> None:
        self.value = value
        self.save()


class ModelStateHandler(StateHandler):
    def sync(self) -> None:
        broadcast_parameters(self.value.state_dict(), _ROOT)
        self.save()


class OptimizerStateHandler(StateHandler):
    def sync(self) -> None:
        broadcast_optimizer_state(self.value, _ROOT)
        self.save()


class SamplerStateHandler(StateHandler):
    def sync(self) -> None:
        self.value.load_state_dict(broadcast_object(self.value.state_dict(), _ROOT))
        self.save()


_HANDLERS: list[tuple[type, type[StateHandler]]] = [
    (nn.Module, ModelStateHandler),
    (torch.optim.Optimizer, OptimizerStateHandler),
    (ElasticSampler, SamplerStateHandler),
]


def get_handler_registry() -> list[tuple[type, type[StateHandler]]]:
    """Return pairs of type and handler.

    The first type that matches a value of `TorchState` is used.
    """
    return _HANDLERS


def set_handler_registry(registry: list[tuple[type, type[StateHandler]]]) -> None:
    _HANDLERS[:] = registry


class TorchState(ObjectState):
    """A state of models, optimizers, samplers and other objects, each an attribute."""

    def __init__(
        self, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, **kwargs: Any
    ) -> None:
        objects = kwargs | {"model": model, "optimizer": optimizer}
        handlers = {name: _handler(value) for name, value in objects.items()}
        self._handlers = {name: handler for name, handler in handlers.items() if handler is not None}
        for name, handler in self._handlers.items():
            object.__setattr__(self, name, handler.value)
        others = {name: value for name, value in kwargs.items() if name not in self._handlers}
        super().__init__(broadcast_object, rank, **others)

    def save(self) -> None:
        for handler in self._handlers.values():
            handler.save()
        super().save()

    def restore(self) -> None:
        for handler in self._handlers.values():
            handler.restore()
        super().restore()

    def sync(self) -> None:
        for handler in self._handlers.values():
            handler.sync()
        super().sync()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_handlers", ()):
            self._handlers[name].set_value(value)
        super().__setattr__(name, value)


def _handler(value: Any) -> StateHandler | None:
    return next((handler(value) for kind, handler in _HANDLERS if isinstance(value, kind)), None)
