"""When and how many weights become zero, and which of them: pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hvd_train.config.compress_model import PruneScheduleSection


def is_due(section: PruneScheduleSection, step: int) -> bool:
    """Return True if weights are chosen after `step` steps."""
    within = section.begin < step <= section.end
    return within and ((step - section.begin) % section.every == 0 or step == section.end)


def sparsity_at(section: PruneScheduleSection, final: float, step: int) -> float:
    """Return the share of zeros after `step` steps: s (1 - (1 - (t - begin) / (end - begin))^3).

    Zhu and Gupta, arXiv 1710.01878. Many weights are dropped early, when most of them are
    redundant, and few at the end.
    """
    progress = min(max((step - section.begin) / (section.end - section.begin), 0.0), 1.0)
    return final * (1 - (1 - progress) ** 3)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` elements of the one-dimensional `scores`, the lowest.

    Of equal scores the first are taken.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    mask = scores < threshold
    ties = (scores == threshold).nonzero()[:, 0]
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def choose(scores: Mapping[str, Tensor], dropped: Mapping[str, Tensor], share: float, scope: str) -> dict[str, Tensor]:
    """Return the masks of the weights to drop: `share` of all weights, or of each layer.

    What is already `dropped` stays so.
    """
    flat = {
        name: s.reshape(-1).masked_fill(dropped[name].reshape(-1), -torch.inf) if name in dropped else s.reshape(-1)
        for name, s in scores.items()
    }
    if scope == "global":
        sizes = [s.numel() for s in flat.values()]
        whole = lowest(torch.cat(list(flat.values())), round(share * sum(sizes)))
        masks = dict(zip(flat, whole.split(sizes), strict=True))
    else:
        masks = {name: lowest(s, round(share * s.numel())) for name, s in flat.items()}
    return {name: mask.view(scores[name].shape) for name, mask in masks.items()}


def pack(mask: Tensor) -> Tensor:
    """Return the bits of a mask as bytes, 8 elements in each, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, like: Tensor) -> Tensor:
    """Return the mask of which `packed` has the bits, in the shape and on the device of `like`."""
    bits = np.unpackbits(packed.cpu().numpy(), count=like.numel())
    return torch.from_numpy(bits).view(like.shape).bool().to(like.device)
