"""Corruptions of images, rows and tokens against direct formulas."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hvd_train.config import plugins
from hvd_train.trained.attacking.columns import Columns, columns
from hvd_train.trained.attacking.corruption import SEVERITIES, Corruption
from hvd_train.trained.attacking.images.defocus_blur import disk
from hvd_train.trained.attacking.pictures import displaced, plasma, zoomed

FAMILY = "hvd_train.trained.attacking."
IMAGES = plugins.names(FAMILY + "images")


def create(kind: str, name: str, severity: int, *arguments: Columns) -> Corruption:
    made: Corruption = plugins.create(FAMILY + kind, name, severity, *arguments)
    return made


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(channels: int = 3, height: int = 33, width: int = 41) -> Tensor:
    return torch.rand(channels, height, width, generator=generator(7)) * 0.8 + 0.1


def test_there_are_the_fifteen_corruptions_of_imagenet_c() -> None:
    assert len(IMAGES) == 15


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(3, 33, 41), (1, 8, 8)], ids=["colour", "small"])
def test_a_corruption_changes_an_image_by_its_generator_alone(name: str, shape: tuple[int, int, int]) -> None:
    image = picture(*shape)
    before = image.clone()
    for severity in SEVERITIES:
        corrupt = create("images", name, severity)
        found = corrupt(image, generator())
        assert found.shape == image.shape
        assert found.dtype == image.dtype
        assert torch.isfinite(found).all()
        assert torch.equal(found, corrupt(image, generator()))
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast", "defocus_blur"]
)
def test_larger_severities_change_more(name: str) -> None:
    image = picture(height=224, width=224)
    sizes = [float((create("images", name, s)(image, generator()) - image).abs().mean()) for s in SEVERITIES]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "elastic_transform"]
)
def test_what_moves_pixels_keeps_a_plain_image(name: str) -> None:
    plain = torch.full((3, 20, 30), 0.4)
    for severity in SEVERITIES:
        torch.testing.assert_close(create("images", name, severity)(plain, generator()), plain, rtol=0, atol=1e-5)


def test_contrast_and_brightness_are_those_of_the_formulas() -> None:
    image = picture(height=4, width=5)
    mean = image.mean((1, 2), keepdim=True)
    torch.testing.assert_close(create("images", "contrast", 2)(image, generator()), mean + 0.3 * (image - mean))
    found = create("images", "brightness", 3)(image, generator())
    for y in range(4):
        for x in range(5):
            h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
            wanted = colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))
            assert found[:, y, x].tolist() == pytest.approx(wanted, abs=1e-5)


def test_noise_has_the_moments_of_its_parameters() -> None:
    grey = torch.full((1, 300, 300), 0.5)
    noisy = create("images", "gaussian_noise", 3)(grey, generator()) - grey
    assert float(noisy.std()) == pytest.approx(0.18, rel=0.02)
    shot = create("images", "shot_noise", 4)(grey, generator())
    assert float(shot.mean()) == pytest.approx(0.5, rel=0.02)
    assert float(shot.var()) == pytest.approx(0.5 / 5, rel=0.03)
    impulses = create("images", "impulse_noise", 5)(grey, generator())
    assert float((impulses == 0).float().mean()) == pytest.approx(0.27 / 2, rel=0.05)
    assert float((impulses == 1).float().mean()) == pytest.approx(0.27 / 2, rel=0.05)


def test_jpeg_artefacts_are_those_of_pillow() -> None:
    image = picture(height=16, width=24)
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=7)
    wanted = torch.from_numpy(np.array(Image.open(file), np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(create("images", "jpeg_compression", 5)(image, generator()), wanted)


def test_a_disk_covers_its_area() -> None:
    assert disk(0.3).shape == (3, 3)
    assert float(disk(0.3)[1, 1]) == 1.0
    wide = disk(4.0)
    assert wide.shape == (9, 9)
    assert float(wide.sum()) == pytest.approx(1)
    assert float(wide[4, 4]) == pytest.approx(1 / (np.pi * 16), rel=0.02)


def test_displacements_are_in_pixels() -> None:
    image = picture()
    here = torch.zeros(33, 41)
    torch.testing.assert_close(displaced(image, here, here), image, rtol=0, atol=1e-5)
    moved = displaced(image, here + 2, here - 3)
    torch.testing.assert_close(moved[:, :-2, 3:], image[:, 2:, :-3], rtol=0, atol=1e-5)
    torch.testing.assert_close(zoomed(image, 1.0), image, rtol=0, atol=1e-5)
    clouds = plasma(20, 30, 2.0, generator())
    assert (float(clouds.min()), float(clouds.max())) == pytest.approx((0, 1))


DOCUMENTS = [
    {"name": "width", "kind": "number"},
    {"name": "colour", "kind": "onehot", "categories": ["blue", "red"]},
    {"name": "size", "kind": "code", "categories": ["l", "s"]},
    {"name": "height", "kind": "number"},
]
ROWS = torch.tensor([[0.0, 1, 0, 1, 10], [4.0, 0, 1, 2, 30]])


def test_missing_values_become_the_mean_or_an_unknown_text() -> None:
    of = columns(DOCUMENTS, ROWS)
    assert of.missing.tolist() == [2.0, 0, 0, 0, 20.0]
    assert of.deviations.tolist() == [2.0, 10.0]
    row = torch.tensor([1.0, 0, 1, 2, 11])
    found = [create("tables", "missing", 5, of)(row, generator(seed)) for seed in range(200)]
    groups = {"width": slice(0, 1), "colour": slice(1, 3), "size": slice(3, 4), "height": slice(4, 5)}
    for place in groups.values():
        lost = [torch.equal(one[place], of.missing[place]) for one in found]
        assert all(is_lost or torch.equal(one[place], row[place]) for one, is_lost in zip(found, lost, strict=True))
        assert 70 < sum(lost) < 130
    assert row.tolist() == [1.0, 0, 1, 2, 11]


def test_shifts_and_noise_change_numbers_alone() -> None:
    of, row = columns(DOCUMENTS, ROWS), torch.tensor([1.0, 0, 1, 2, 11])
    for seed in range(10):
        shift = create("tables", "shift", 3, of)(row, generator(seed)) - row
        assert shift[[1, 2, 3]].tolist() == [0, 0, 0]
        assert shift[[0, 4]].abs().tolist() == [2.0, 10.0]
    noise = torch.stack([create("tables", "noise", 5, of)(row, generator(seed)) - row for seed in range(2000)])
    assert noise[:, [1, 2, 3]].abs().max() == 0
    assert noise[:, 4].std() == pytest.approx(10, rel=0.1)


def test_tokens_are_replaced_swapped_and_lost() -> None:
    tokens = torch.arange(1000)
    typos = create("texts", "typos", 4)(tokens, generator())
    assert 70 < int((typos != tokens).sum()) < 130
    swaps = create("texts", "swaps", 5)(tokens, generator())
    assert sorted(swaps.tolist()) == tokens.tolist()
    assert 200 < int((swaps != tokens).sum()) < 400
    lost = create("texts", "drop_outs", 5)(tokens, generator())
    changed = lost != tokens
    assert 150 < int(changed.sum()) < 250
    assert torch.equal(lost[changed], (tokens.roll(1))[changed])
    assert len(create("texts", "swaps", 5)(tokens[:1], generator())) == 1
