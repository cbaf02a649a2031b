"""What `compress_model` changes in the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hvd_train.config.compress_model import CompressModelSection
from hvd_train.slim import low_rank, quantization
from hvd_train.state import model_state


def apply_(model: nn.Module, section: CompressModelSection) -> None:
    """Replace the layers of `model` that are factorised or quantised; UserError if there are none."""
    if section.low_rank is not None:
        low_rank.replace_(model, section.low_rank)
    if section.quantize is not None:
        quantization.replace_(model)


def initialise_(model: nn.Module, parameters: Mapping[str, Tensor], where: str) -> None:
    """Load the parameters of the uncompressed model into the compressed one.

    Low-rank layers factorise them. Raise UserError, which names the checkpoint `where`, if they are
    of another model.
    """
    model_state.load_(model, parameters, f"compress_model.init: {where} is of another model")
    if any(isinstance(m, low_rank.LowRank) for m in model.modules()):
        low_rank.check(model)
