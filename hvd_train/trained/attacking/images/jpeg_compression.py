"""Artefacts of a JPEG file of low quality."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.trained.attacking.corruption import Corruption

QUALITIES = (25, 18, 15, 10, 7)


def create(severity: int) -> Corruption:
    """Raise UserError without Pillow."""
    pillow, quality = import_extra("PIL.Image", "images"), QUALITIES[severity - 1]

    def plane(pixels: np.ndarray) -> Tensor:
        file = io.BytesIO()
        pillow.fromarray(pixels).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(pillow.open(file), np.float32) / 255)

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        if len(image) == 3:
            return plane(np.ascontiguousarray(pixels.transpose(1, 2, 0))).permute(2, 0, 1)
        return torch.stack([plane(channel) for channel in pixels])

    return corrupt
