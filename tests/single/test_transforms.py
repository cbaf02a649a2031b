"""Transforms of training samples against what their definitions give."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data.augmentation import beta
from hvd_train.data.base import tensor_split
from hvd_train.data.load import default_collate, load
from hvd_train.data.samples import RowItems, SampleSplit, TransformedSplit
from hvd_train.data.spec import DataSpec
from hvd_train.data.transform import Transform, TransformContext
from hvd_train.data.transforms.colour_jitter import jitter
from hvd_train.data.transforms.cutmix import window
from hvd_train.data.transforms.erase import span
from hvd_train.data.transforms.smote import nearest_rows
from hvd_train.errors import UserError

FAMILY = "hvd_train.data.transforms"
SPEC = DataSpec((3, 6, 8), 5, "classification")
PREPROCESSING = {"files": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}


def make(name: str, spec: DataSpec = SPEC, **options: Any) -> Transform:
    preprocessing = options.pop("preprocessing", {})
    return plugins.create(FAMILY, name, TransformContext(spec, 7, None, preprocessing), **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0) -> Tensor:
    return torch.rand(3, 6, 8, generator=seeded(seed))


# test_mask_tokens.py has the transform of tokens.
@pytest.mark.parametrize("name", sorted({*plugins.names(FAMILY)} - {"mask_tokens"}))
def test_each_transform_repeats_itself_and_draws_from_its_generator_only(name: str):
    transform = pickle.loads(pickle.dumps(make(name)))
    batch = (torch.stack([image(i) for i in range(5)]), torch.arange(5))
    state = torch.get_rng_state()
    results = [transform.sample((image(), torch.tensor(3)), seeded(s)) for s in (1, 1)]
    batches = [transform.batch(batch, seeded(s)) for s in (1, 1)]
    for one, two in (results, batches):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch[0][0], image(0)), "the samples of the source stay as they are"


def test_crop_shifts_an_image_and_its_mask_by_each_offset_up_to_the_padding():
    x = torch.arange(1, 49).view(6, 8)
    seen = Counter()
    for seed in range(400):
        out = make("crop", padding=2).sample({"image": x[None].float().expand(3, 6, 8), "mask": x}, seeded(seed))
        assert torch.equal(out["mask"].float(), out["image"][1])
        padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
        where = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[i : i + 6, j : j + 8], out["mask"])]
        seen[where[0]] += 1
    assert len(seen) == 25


def test_flip_swaps_the_sides_with_its_probabilities():
    x = image()
    sample = (x, torch.tensor(1))
    assert torch.equal(make("flip", horizontal=1.0).sample(sample, seeded())[0], x.flip(2))
    assert torch.equal(make("flip", horizontal=0.0, vertical=1.0).sample(sample, seeded())[0], x.flip(1))
    flipped = sum(
        torch.equal(make("flip", horizontal=0.25).sample(sample, seeded(s))[0], x.flip(2)) for s in range(400)
    )
    assert 70 < flipped < 130
    mask = torch.arange(48).view(6, 8)
    assert torch.equal(make("flip", horizontal=1.0).sample((x, mask), seeded())[1], mask.flip(1))


def test_resized_crop_enlarges_a_part_and_keeps_shape_and_classes_of_a_mask():
    ramp = torch.arange(32.0).expand(3, 32, 32)
    whole = make("resized_crop", area=[1.0, 1.0], ratio=1.0).sample((ramp, torch.tensor(0)), seeded())[0]
    assert torch.allclose(whole, ramp, atol=1e-5)
    part, mask = make("resized_crop", area=[0.25, 0.25], ratio=1.0).sample((ramp, 10 * ramp[0].long()), seeded())
    assert torch.allclose(part[0, 0].diff()[2:-2], torch.tensor(0.5), atol=1e-5), "16 of 32 columns"
    assert mask.dtype == torch.int64
    assert len(mask[0].unique()) == 16
    assert not (mask % 10).any(), "no classes between others"


def test_jitter_of_neutral_and_extreme_factors():
    x = image()
    luma = (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand(3, 6, 8)
    for factors, turn, expected in [
        ((1, 1, 1), 0.0, x),
        ((1, 1, 1), 1.0, x),
        ((0.5, 1, 1), 0.0, x / 2),
        ((3, 1, 1), 0.0, (x * 3).clamp(max=1)),
        ((1, 0, 1), 0.0, luma.mean().expand(3, 6, 8)),
        ((1, 1, 0), 0.0, luma),
    ]:
        assert torch.allclose(jitter(x, factors, turn), expected, atol=1e-5), (factors, turn)
    pale = 0.4 + 0.2 * x
    turned = jitter(pale, (1, 1, 1), 0.25)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose((turned * weights).sum(0), (pale * weights).sum(0), atol=1e-6), "the luma stays"
    assert torch.allclose(jitter(turned, (1, 1, 1), 0.75), pale, atol=1e-5)
    assert torch.equal(jitter(x[:1], (1, 1, 0), 0.3), x[:1]), "grey has no colour"


def test_colour_jitter_works_on_the_pixels_before_the_source_standardised_them():
    mean, std = (torch.tensor(PREPROCESSING["files"][key])[:, None, None] for key in ("mean", "std"))
    options = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5}
    plain = make("colour_jitter", **options).sample((image(), 1), seeded(4))[0]
    scaled = make("colour_jitter", preprocessing=PREPROCESSING, **options).sample(
        ((image() - mean) / std, 1), seeded(4)
    )[0]
    assert torch.allclose(scaled * std + mean, plain, atol=1e-5)
    assert not torch.allclose(plain, image(), atol=0.05)


def test_erase_sets_a_rectangle_of_the_area_to_zero():
    x = torch.ones(3, 32, 32)
    areas, ratios = [], []
    for seed in range(50):
        erased, _ = make("erase", probability=1.0, area=[0.1, 0.2]).sample((x, 0), seeded(seed))
        rows, columns = (erased[0] == 0).any(1).sum(), (erased[0] == 0).any(0).sum()
        assert (erased == 0).sum() == 3 * rows * columns, "one rectangle in all channels"
        areas.append(float(rows * columns) / 32**2)
        ratios.append(float(rows / columns))
    assert 0.08 < min(areas) < 0.12 < 0.18 < max(areas) < 0.22
    assert min(ratios) < 0.5 < 2 < max(ratios)
    assert make("erase", probability=0.0).sample((x, 0), seeded())[0] is x
    assert [span(10, 0.5, w) for w in (0, 1)] == [slice(0, 5), slice(5, 10)]
    assert span(10, 1.5, 0.5) == slice(0, 10)


def test_noise_is_normal_with_its_standard_deviation_and_leaves_integers_and_targets():
    x = image()
    expected = x + 0.3 * torch.randn(3, 6, 8, generator=seeded(5))
    ids, y = torch.arange(3), torch.tensor([1.5])
    noisy = make("noise", std=0.3).sample({"x": x, "ids": ids, "labels": y}, seeded(5))
    assert torch.equal(noisy["x"], expected)
    assert noisy["ids"] is ids
    assert noisy["labels"] is y
    array = make("noise", std=0.3).sample((x.numpy(), 1), seeded(5))[0]
    assert torch.equal(array, expected), "arrays of NumPy count"


@pytest.mark.parametrize("y", [torch.tensor([0, 4, 4, 2]), torch.rand(4, 3)], ids=["classes", "numbers"])
def test_mixup_mixes_inputs_and_targets_by_the_same_parts(y: Tensor):
    """The inputs are rows of the identity, so the outputs are the matrix of the mixture."""
    mixed, targets = make("mixup", alpha=1.0).batch([torch.eye(4), y], seeded(4))
    rows = torch.nn.functional.one_hot(y, 5).float() if y.dim() == 1 else y
    assert torch.allclose(targets, mixed @ rows, atol=1e-6)
    assert torch.allclose(mixed.sum(1), torch.ones(4), atol=1e-6)
    assert not torch.equal(mixed, torch.eye(4))


def test_the_parts_of_mixup_have_the_beta_distribution():
    parts = np.array([beta(0.4, seeded(s)) for s in range(2000)])
    assert abs(parts.mean() - 0.5) < 0.03
    assert abs(parts.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01


def test_cutmix_mixes_targets_by_the_area_that_was_replaced():
    n = 6
    x = torch.arange(n)[:, None, None, None].expand(n, 1, 10, 10).float()
    parts = []
    for seed in range(40):
        mixed, targets = make("cutmix", DataSpec((1, 10, 10), n, "classification")).batch(
            (x, torch.arange(n)), seeded(seed)
        )
        counts = torch.stack([torch.bincount(image.flatten().long(), minlength=n) for image in mixed])
        assert torch.allclose(targets, counts / 100, atol=1e-6)
        parts.append(float(targets.diagonal().min()))
    assert len(set(parts)) > 10
    assert [window(10, 0.4, c) for c in (0.0, 0.5, 1.0)] == [slice(0, 2), slice(3, 7), slice(8, 10)]


def test_a_batch_that_is_not_mixed_has_probabilities_as_targets_too():
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([1, 0, 4])
    for name in ("mixup", "cutmix"):
        same, targets = make(name, probability=0.0).batch({"x": x, "y": y}, seeded()).values()
        assert same is x
        assert torch.equal(targets, torch.nn.functional.one_hot(y, 5).float())


def rows(counts: list[int]) -> Any:
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return tensor_split(torch.rand(len(y), 3, generator=seeded(1)), y)


def test_smote_gives_each_class_the_rows_of_the_largest_between_neighbours_of_the_class():
    split = rows([20, 6, 3, 0])
    grown = make("smote", neighbours=2).grow(split)
    assert torch.bincount(grown.labels).tolist() == [20, 20, 20]
    x, y = grown.batch(torch.arange(len(grown)))
    assert torch.equal(x[:29], split.x)
    assert torch.equal(y, grown.labels)
    shuffled = torch.randperm(60, generator=seeded())
    assert torch.equal(grown.batch(shuffled)[0], x[shuffled])
    for c, neighbours in ((1, 2), (2, 2)):
        real, near = split.x[split.y == c], nearest_rows(split.x[split.y == c], neighbours)
        pairs = [(i, int(j)) for i in range(len(real)) for j in near[i]]
        for row in x[29:][y[29:] == c]:
            gaps = [((row - real[i]) / (real[j] - real[i])) for i, j in pairs]
            assert any(float(g.max() - g.min()) < 1e-3 and -1e-4 < float(g.mean()) < 1 + 1e-4 for g in gaps)
    assert torch.equal(make("smote", neighbours=2).grow(split).x, grown.x), "equal on all ranks"


def test_smote_up_to_a_ratio_leaves_larger_classes():
    assert torch.bincount(make("smote", ratio=0.5).grow(rows([20, 12, 4])).labels).tolist() == [20, 12, 10]
    balanced = rows([5, 5])
    assert make("smote").grow(balanced) is balanced


def test_nearest_rows_equal_a_search_of_all_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hvd_train.data.transforms.smote.ROWS", 7)
    x = torch.rand(20, 4, generator=seeded())
    for i, found in enumerate(nearest_rows(x, 3).tolist()):
        others = sorted((math.dist(x[i].tolist(), x[j].tolist()), j) for j in range(20) if j != i)
        assert found == [j for _, j in others[:3]]


def loaded(*transforms: dict[str, Any], **options: Any) -> Any:
    section = {"name": "synthetic", "samples": 50, "transforms": list(transforms), **options}
    return load(read_section(DataSection, Document({k: v for k, v in section.items() if v}, "test")), seed=3)


def test_transforms_of_samples_change_training_samples_of_arrays_by_epoch_and_position():
    raw, data = loaded(), loaded({"name": "noise", "std": 0.5})
    one, two = torch.tensor([4, 9, 2]), torch.tensor([2, 7])
    x, y = data.train.at(0).batch(one)
    assert torch.equal(data.train.at(0).batch(two)[0][0], x[2]), "in any batch"
    assert not torch.equal(data.train.at(1).batch(one)[0], x)
    assert 0.3 < float((x - raw.train.batch(one)[0]).std()) < 0.7
    assert torch.equal(y, raw.train.batch(one)[1])
    assert torch.equal(data.test.batch(two)[0], raw.test.batch(two)[0])


def test_rows_of_arrays_are_transformed_as_single_samples_are():
    """The transforms draw the same numbers for each row, whether the batch is made of samples or of rows."""
    x, masks = torch.rand(9, 3, 6, 8), torch.randint(5, (9, 6, 8))
    split = tensor_split(x, masks)
    transforms = [make("crop", padding=2), make("flip", vertical=0.5), make("resized_crop")]
    positions = torch.tensor([4, 0, 7])
    of_samples = SampleSplit(RowItems(split), default_collate, transforms, 3).at(2).batch(positions)
    of_rows = TransformedSplit(split, transforms, 3).at(2).batch(positions)
    for found, expected in zip(of_rows, of_samples, strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(of_rows[0], x[positions])


def test_smote_adds_rows_as_they_are_before_other_transforms():
    data = loaded({"name": "mixup"}, {"name": "smote"}, classes=3)
    counts = torch.bincount(data.train.labels)
    assert counts.tolist() == [int(counts.max())] * 3
    x, y = data.train.at(0).batch(torch.arange(len(data.train)))
    assert y.shape == (len(x), 3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: make("crop").sample((torch.rand(3), 1), seeded()), "expected an image (channels, height, width)"),
        (
            lambda: make("flip").rows((torch.rand(3, 4), torch.ones(3)), [seeded()] * 3),
            "expected images (samples, channels, height, width)",
        ),
        (lambda: make("mixup").batch(torch.rand(3), seeded()), "expected inputs with a tensor of targets"),
        (
            lambda: make("mixup").batch((torch.rand(3), torch.ones(3, 2).long()), seeded()),
            "expected classes or floating",
        ),
        (lambda: make("cutmix").batch((torch.rand(3, 2), torch.arange(3)), seeded()), "expected images (n, channels"),
        (lambda: make("smote").grow(rows([9, 1])), "class 1 has one training sample, expected at least two"),
        (lambda: make("smote").grow(tensor_split(torch.rand(4, 1, 2, 2), torch.arange(4))), "expected rows of numbers"),
        (lambda: make("smote").grow(tensor_split(torch.rand(4, 2), torch.rand(4, 1))), "expected rows of numbers"),
    ],
)
def test_samples_that_a_transform_cannot_take_are_refused(act: Any, message: str):
    with pytest.raises(UserError) as refused:
        act()
    assert message in str(refused.value)
