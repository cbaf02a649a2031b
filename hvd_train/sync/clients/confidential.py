"""Keeps all data of a client on its rank, apart from the update under noise or masks."""

from __future__ import annotations

from torch import Tensor, equal, nn

from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import ModelOptimizer, State
from hvd_train.state import model_state


class ConfidentialOptimizer(ModelOptimizer):
    """Saves no state: it comes from a client's gradients and stays with the client."""

    def state(self) -> State:
        return {}


def check_model(model: nn.Module) -> None:
    """Raise UserError if `model` has state that noise and masks do not cover."""
    name = next((n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None), None)
    if name is not None:
        raise UserError(
            f"sync: '{name}' keeps running statistics of a client's data, which neither noise nor masks cover; "
            "take a model with group or layer normalisation, or leave out noise and secure"
        )
    name = next((n for n, t in model_state.tensors(model) if t.is_complex()), None)
    if name is not None:
        raise UserError(
            f"sync: '{name}' is complex, and noise and masks cover real numbers only; keep its real and imaginary part "
            "as two parameters, or leave out noise and secure"
        )
    name = next(iter(model_state.others(model)), None)
    if name is not None:
        raise UserError(
            f"sync: '{name}' is state beside tensors, which neither noise nor masks cover; take a model without it, or leave "
            "out noise and secure"
        )


class UncoveredBuffers:
    """The buffers that are not part of an update: buffers of integers and bools.

    They must not change. `statistics`, the running statistics of the model, are part of an update
    and must keep their shapes.
    """

    def __init__(self, model: nn.Module, statistics: dict[str, Tensor]) -> None:
        self._model, self._statistics = model, statistics
        self._before = {n: (b, b.clone()) for n, b in model.named_buffers() if not b.is_floating_point()}

    def check(self) -> None:
        """Raise UserError if a buffer has changed."""
        buffers = dict(self._model.named_buffers())
        changed = next((n for n, (now, before) in self._before.items() if not equal(now, before)), None)
        resized = (n for n, b in self._statistics.items() if n not in buffers or buffers[n].shape != b.shape)
        changed = changed or next(resized, None)
        if changed is not None:
            raise UserError(
                f"sync: buffer '{changed}' changes while a client trains, and noise and masks cover floating-point numbers "
                "of a fixed shape only; take a model without it, or leave out noise and secure"
            )
