"""The section of the YAML file that makes a model smaller while it trains."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hvd_train.config.section import PluginSection, Section

Share = Annotated[float, Field(gt=0, lt=1)]
Patterns = Annotated[list[str], Field(min_length=1)]


class PruneScheduleSection(Section):
    begin: NonNegativeInt = Field(0, description="step from which the sparsity rises")
    end: PositiveInt = Field(
        description="step from which the sparsity is the wanted one and the zeros stay where they are"
    )
    every: PositiveInt = Field(10, description="steps between two choices of the weights that become zero")

    @model_validator(mode="after")
    def _rises(self) -> PruneScheduleSection:
        if self.end <= self.begin:
            raise ValueError(f"expected an end after begin ({self.begin}), got {self.end}")
        return self


class PruneSection(PluginSection):
    package: ClassVar[str] = "hvd_train.slim.pruning"
    selector: ClassVar[str] = "method"
    default: ClassVar[str | None] = "magnitude"
    product: ClassVar[str] = "a Criterion"
    method: str = Field("magnitude", description="which weights become zero first (ddl list pruning)")
    sparsity: Share = Field(description="share of the weights that are zero at the end")
    scope: Literal["global", "layer"] = Field(
        "global", description="the share is one of all layers together, or of each layer"
    )
    layers: Patterns = Field(
        ["*"], description="layers to prune, by names with * and ?; by default all linear and convolutional ones"
    )
    schedule: PruneScheduleSection


class DistillSection(Section):
    shorthand: ClassVar[str | None] = "teacher"
    teacher: str = Field(
        description="run folder or checkpoint of the teacher, or package.module:callable that makes it"
    )
    temperature: PositiveFloat = Field(
        2.0, description="divides the scores of both models, so that small ones count more"
    )
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="weight of the teacher's outputs in the loss; the targets have the rest"
    )


class LowRankSection(Section):
    rank: PositiveInt | None = Field(None, description="rank of the factors; exclusive with 'energy'")
    energy: Share | None = Field(
        None, description="share of the sum of the squared singular values that the factors of each layer keep"
    )
    layers: Patterns = Field(
        ["*"], description="layers to factorise, by names with * and ?; by default all linear and convolutional ones"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> LowRankSection:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give 'rank' or 'energy'")
        return self


class CompressModelSection(Section):
    init: str | None = Field(
        None, description="run folder or checkpoint of the uncompressed model, whose parameters this run begins with"
    )
    low_rank: LowRankSection | None = None
    quantize: Literal["qat"] | None = Field(
        None, description="qat: train with the rounding errors of int8 weights and inputs (quantisation-aware training)"
    )
    prune: PruneSection | None = None
    distill: DistillSection | None = None

    @model_validator(mode="after")
    def _energy_of_trained_parameters(self) -> CompressModelSection:
        if self.low_rank is not None and self.low_rank.energy is not None and self.init is None:
            raise ValueError("low_rank.energy is of trained parameters: expected init, the run that has them")
        return self

    @property
    def active(self) -> bool:
        """True if the run changes the model, its training or its loss."""
        return self != type(self)()
