"""More light: a larger value in the colour space HSV, with the same hue and saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

MORE = (0.1, 0.2, 0.3, 0.4, 0.5)


def create(severity: int) -> Corruption:
    more = MORE[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        value = image.amax(0, keepdim=True)
        brighter = (value + more).clamp(max=1)
        return torch.where(value > 0, image * brighter / value.clamp(min=1e-6), brighter)

    return corrupt
