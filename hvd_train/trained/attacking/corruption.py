"""The contract of a corruption: a change of an input that people still understand, in five severities.

A corruption is a file in the folder of its kind of inputs (`images`, `tables`, `texts`) whose
`create(severity)` returns a `Corruption`; for tables `create(severity, columns)`. The parameters of
the severities 1 to 5 are a table in the file.

Images are in 0 to 1. Lengths in pixels are those of ImageNet-C, whose images have a side of 224, and
are scaled with the shorter side of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, torch.Generator], Tensor]
"""Returns a changed input: an image (channels, height, width), a row (n,) or tokens (n,)."""
