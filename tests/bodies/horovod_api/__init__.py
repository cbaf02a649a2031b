"""The contract of the Horovod-compatible API: the same bodies run on Horovod and on ddl's own API."""

from tests.bodies.horovod_api import (
    batch_norm,
    beside,
    coordination,
    elastic,
    errors,
    functions,
    gradients,
    joins,
    lifecycle,
    movement,
    optimizer,
    process_sets,
    reductions,
)

_FAMILIES = (
    reductions,
    movement,
    gradients,
    errors,
    process_sets,
    joins,
    coordination,
    functions,
    optimizer,
    batch_norm,
    elastic,
    beside,
)
BODIES = [body for family in _FAMILIES for body in family.BODIES]
LIFECYCLE = lifecycle.BODIES
