"""The format and the description of samples of which only the first is known before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from hvd_train.data.records.fields import Fields, pick
from hvd_train.data.records.sample_format import SampleFormat, Tokens, language_spec
from hvd_train.data.records.values import Encode, Place, as_array
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError


def guess(
    record: Mapping[str, Any], place: Place, fields: Fields, encode: Encode, classes: int | Sequence[str] | None
) -> tuple[SampleFormat, DataSpec]:
    """Return format and description of samples like `record`, the first one.

    With `classes`, their number or their names, targets are classes. Numbers are a regression. Raise
    UserError for an integer as the target without `classes`.
    """
    form = SampleFormat(fields, encode=encode)
    if fields.target is None:
        if isinstance(fields.inputs, str) and isinstance(encode, Tokens):
            return replace(form, kind="next"), language_spec(encode)
        return form, DataSpec((), 0, "other")
    if classes is not None:
        names = {} if isinstance(classes, int) else {name: number for number, name in enumerate(classes)}
        outputs = classes if isinstance(classes, int) else len(classes)
        form = replace(form, kind="class", classes=names, outputs=outputs)
        return form, DataSpec(input_shape(form, record, place), outputs, "classification")
    value = pick(record, fields.target, place)
    numbers = None if isinstance(value, str | Mapping | Tensor) else as_array(value, place)
    if numbers is None or (numbers.dtype.kind in "iu" and numbers.ndim):
        return form, DataSpec((), 0, "other")
    if numbers.dtype.kind in "iub":
        found = f"{place()}: '{fields.target}' is the integer {value}, which is a class"
        raise UserError(f"data.classes is missing, and {found}; give the number of classes")
    form = replace(form, kind="numbers")
    return form, DataSpec(input_shape(form, record, place), int(np.size(numbers)), "regression")


def input_shape(form: SampleFormat, record: Mapping[str, Any], place: Place) -> tuple[int, ...]:
    """Return the shape of the input if there is one and it is a tensor of numbers, else ()."""
    if not isinstance(form.fields.inputs, str):
        return ()
    x = form.sample(record, place)[0]
    is_tokens = isinstance(pick(record, form.fields.inputs, place), str)
    return tuple(x.shape) if isinstance(x, Tensor) and not is_tokens else ()
