"""The section of low-rank updates, which is an option of models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from hvd_train.config.section import Section


class LoraSection(Section):
    rank: PositiveInt = Field(8, description="rank of each update")
    alpha: PositiveFloat = Field(16.0, description="an update is multiplied by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="fraction of the inputs of an update that is zeroed in training"
    )
    targets: list[str] = Field(
        [],
        description="linear layers with updates, by the ends of their names, such as query; by default those that peft knows "
        "for the type of the model",
    )
