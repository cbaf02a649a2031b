"""Collate functions: nested samples to batches, padding, masks, and what they refuse."""

from __future__ import annotations

import pickle
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.data.collates import pad, stack
from hvd_train.errors import UserError

Pair = namedtuple("Pair", "x y")


def lists(value: Any) -> Any:
    """Return the nesting `value` with tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: lists(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(lists, value))
    return [*map(lists, value)] if isinstance(value, list) else value


def test_every_kind_of_value_is_stacked() -> None:
    samples = [
        {
            "t": torch.full((2,), i),
            "n": np.float32(i),
            "i": i,
            "f": 0.5 * i,
            "b": i > 0,
            "s": str(i),
            "l": [[i, 2], [3, 4]],
        }
        for i in range(2)
    ]
    batch = stack.create()(samples)
    assert lists(batch) == {
        "t": [[0, 0], [1, 1]],
        "n": [0, 1],
        "i": [0, 1],
        "f": [0, 0.5],
        "b": [False, True],
        "s": ["0", "1"],
        "l": [[[0, 2], [3, 4]], [[1, 2], [3, 4]]],
    }
    dtypes = {key: value.dtype for key, value in batch.items() if isinstance(value, Tensor)}
    assert dtypes == {
        "t": torch.int64,
        "n": torch.float32,
        "i": torch.int64,
        "f": torch.float64,
        "b": torch.bool,
        "l": torch.int64,
    }


def test_tuples_stay_tuples_and_a_sample_that_is_a_list_is_a_nesting() -> None:
    batch = stack.create()([Pair((torch.zeros(1), 1), 2), Pair((torch.ones(1), 3), 4)])
    assert isinstance(batch, Pair)
    assert lists(batch.x) == ([[0.0], [1.0]], [1, 3])
    assert lists(stack.create()([[1, 2], [3, 4]])) == [[1, 3], [2, 4]]


@pytest.mark.parametrize("make", [stack.create, pad.create])
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"a": 1}, {"b": 1}], "differ in their keys or lengths"),
        ([{"a": {"c": 1}}, {"a": 1}], "differ in their keys or lengths at 'a'"),
        ([(1, 2), (1, 2, 3)], "differ in their keys or lengths"),
        ([{"a": None}, {"a": None}], "found a value of type NoneType at 'a', expected tensors"),
        ([{"a": np.array(["x", None])}], "found an array of object at 'a', expected tensors"),
    ],
)
def test_samples_that_make_no_batch(make: Any, samples: list[Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(None)(samples)


def test_unequal_lengths_are_for_pad() -> None:
    with pytest.raises(ValueError, match=r"for samples of unequal length set data\.collate: pad"):
        stack.create()([torch.zeros(2), torch.zeros(3)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1, 2, 3], [4, 0, 0]]),
        ({"value": 9}, [[1, 2, 3], [4, 9, 9]]),
        ({"value": {"x": 7}}, [[1, 2, 3], [4, 7, 7]]),
        ({"side": "left"}, [[1, 2, 3], [0, 0, 4]]),
        ({"multiple": 2}, [[1, 2, 3, 0], [4, 0, 0, 0]]),
        ({"multiple": {"x": 3}}, [[1, 2, 3], [4, 0, 0]]),
        ({"multiple": 2, "side": "left"}, [[0, 1, 2, 3], [0, 0, 0, 4]]),
        ({"multiple": 2, "dims": [1]}, [[1, 2, 3], [4, 0, 0]]),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_sequences_are_padded(kind: Any, options: dict[str, Any], expected: list[Any]) -> None:
    batch = pad.create(None, **options)([{"x": kind([1, 2, 3])}, {"x": kind([4])}])
    assert lists(batch) == {"x": expected}


def test_a_batch_of_equal_lengths_is_rounded_as_every_other() -> None:
    assert pad.create(None, multiple=4)([(torch.ones(5), 1)])[0].shape == (1, 8)
    assert pad.create(None, multiple=4, dims=[-1])([(torch.ones(2, 5), 1)])[0].shape == (1, 2, 8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.float16, torch.float64, torch.bool])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    batch = pad.create(None)([(torch.ones(2, dtype=dtype), 0), (torch.ones(1, dtype=dtype), 0)])
    assert batch[0].dtype == dtype
    assert batch[0].tolist() == [[1, 1], [1, 0]]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
)
def test_every_dimension_that_differs_is_padded_and_the_mask_selects_the_values(shapes: Any, side: str) -> None:
    samples = [(torch.rand(2, *shape) + 1, i) for i, shape in enumerate(shapes)]
    x, mask, y = pad.create(None, side=side, dims=[-2, -1], mask="mask")(samples)
    assert x.shape == (len(shapes), 2, max(a for a, _ in shapes), max(b for _, b in shapes))
    assert y.tolist() == [*range(len(shapes))]
    for (sample, _), row, kept in zip(samples, x, mask, strict=True):
        assert torch.equal(row[:, kept], sample.flatten(1))
        assert not row[:, ~kept].any()


@pytest.mark.parametrize(
    ("label", "sample", "expected"),
    [
        (None, {"x": [1], "labels": [1]}, {"x": [1, 0], "labels": [1, -100]}),
        (None, {"label": [1], "target": [1]}, {"label": [1, -100], "target": [1, 0]}),
        ("tags", {"tags": [1], "labels": [1]}, {"tags": [1, -100], "labels": [1, 0]}),
        (None, ([1], [1], [1]), ([1, 0], [1, 0], [1, -100])),
        (None, ([1], {"boxes": [0.5], "kinds": [1]}), ([1, 0], {"boxes": [0.5, 0], "kinds": [1, -100]})),
        (None, ([1], [True]), ([1, 0], [True, False])),
    ],
)
def test_integer_targets_are_padded_with_the_class_that_losses_ignore(label: Any, sample: Any, expected: Any) -> None:
    def longer(value: Any) -> Any:
        if isinstance(value, list):
            return [*value, *value]
        return {k: longer(v) for k, v in value.items()} if isinstance(value, dict) else tuple(map(longer, value))

    def first(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[0].tolist()
        return {k: first(v) for k, v in value.items()} if isinstance(value, dict) else tuple(map(first, value))

    assert first(pad.create(label)([sample, longer(sample)])) == expected


def test_one_padding_is_for_inputs_and_masks_keep_theirs() -> None:
    sample, longer = ({"ids": [1] * n, "attention_mask": [1] * n, "labels": [1] * n} for n in (1, 2))
    assert lists(pad.create(None, value=5)([sample, longer])) == {
        "ids": [[1, 5], [1, 1]],
        "attention_mask": [[1, 0], [1, 1]],
        "labels": [[1, -100], [1, 1]],
    }
    assert lists(pad.create(None, value={"labels": 0})([sample, longer]))["labels"] == [[1, 0], [1, 1]]


def test_masks_are_named_by_the_sequences_that_they_mark() -> None:
    make = pad.create(None, mask={"src_mask": "src", "tgt_mask": "tgt.ids"})
    batch = make([{"src": [1], "tgt": {"ids": [1, 2]}}, {"src": [1, 2], "tgt": {"ids": [1]}}])
    assert lists(batch["src_mask"]) == [[True, False], [True, True]]
    assert lists(batch["tgt_mask"]) == [[True, True], [True, False]]
    labels_first = pad.create(None, mask="mask")([{"labels": [1, 2], "x": [1]}])
    assert lists(labels_first["mask"]) == [[True]]


def test_an_empty_list_has_the_type_of_the_others() -> None:
    batch = pad.create(None)([{"x": []}, {"x": [1, 2]}])
    assert lists(batch) == {"x": [[0, 0], [1, 2]]}
    assert batch["x"].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "samples", "message"),
    [
        (
            {"value": {"lables": 0}},
            [{"labels": [1]}],
            "data.collate.value: no 'lables' in the samples; did you mean 'labels'?",
        ),
        ({"multiple": {"y": 2}}, [{"x": [1]}], "data.collate.multiple: no 'y' in the samples"),
        ({"value": 0.5}, [{"x": [1]}, {"x": [1, 2]}], "data.collate.value: 0.5 is no int64, the type of 'x'"),
        ({"mask": {"m": "z"}}, [{"x": [1]}], "data.collate.mask: no sequence 'z' in the samples"),
        ({"mask": "x"}, [{"x": [1]}], "data.collate.mask: the samples have a value 'x' already"),
        ({"mask": "m"}, [torch.ones(2)], "data.collate.mask: expected samples that are dicts, or tuples"),
    ],
)
def test_refusals(options: dict[str, Any], samples: list[Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        pad.create(None, **options)(samples)
    assert message in str(refusal.value)


def test_padding_that_the_type_cannot_hold_is_refused() -> None:
    samples = [(torch.ones(1), torch.ones(n, dtype=torch.uint8)) for n in (1, 2)]
    with pytest.raises(UserError, match="-100 is no uint8, the type of '1'; give a padding that is"):
        pad.create(None)(samples)


@pytest.mark.parametrize("function", [stack.create(), pad.create(None, value={"x": 1}, mask="m")])
def test_collate_functions_are_picklable(function: Any) -> None:
    samples = [{"x": [1, 2]}]
    assert lists(pickle.loads(pickle.dumps(function))(samples)) == lists(function(samples))
