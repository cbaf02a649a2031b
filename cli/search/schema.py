"""The section `search:` of the YAML file: what `ddl tune` varies, how it chooses, and when it ends.

Ranks never receive it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hvd_train.config.schema import Mode
from hvd_train.config.section import PluginSection, Section


class SamplerSection(PluginSection):
    package: ClassVar[str] = "cli.search.samplers"
    default: ClassVar[str | None] = "tpe"
    takes_target: ClassVar[bool] = False
    name: str = Field("tpe", description="how the values of the next trial are chosen (ddl list samplers)")


class PrunerSection(PluginSection):
    package: ClassVar[str] = "cli.search.pruners"
    default: ClassVar[str | None] = "none"
    takes_target: ClassVar[bool] = False
    name: str = Field("none", description="which trials end early (ddl list pruners)")


class ObjectiveSection(Section):
    """A figure of each trial that the search improves."""

    shorthand: ClassVar[str | None] = "metric"
    metric: str = Field(
        description="metric of the evaluations, or a figure: seconds, steps, bytes_sent, parameters, samples_per_second"
    )
    mode: Mode | None = Field(
        None, description="max: a larger value is better; by default max for accuracy and return, min for other figures"
    )
    at: str | None = Field(
        None, description="METRIC=VALUE: take the figure at the first evaluation that reaches it, such as accuracy=0.95"
    )


class SearchSection(Section):
    space: dict[str, Any] = Field(
        {}, description="fields to vary, such as optimizer.lr: log(1e-4, 1e-1) or model.hidden: [[32], [64, 64]]"
    )
    constraints: list[str] = Field(
        [], description="comparisons that every trial satisfies, such as data.batch_size * np <= 512"
    )
    sampler: SamplerSection = Field(default_factory=SamplerSection)
    pruner: PrunerSection = Field(default_factory=PrunerSection)
    objectives: list[ObjectiveSection] = Field(
        [], description="figures to improve; by default the metric of train.converge, return, accuracy or loss"
    )
    trials: PositiveInt | None = Field(
        None, description="trials of the whole search; by default 20, or all points of a grid"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="folds of a cross-validation: each trial is a run for each of them (see data.fold)"
    )
    max_seconds: PositiveFloat | None = Field(None, description="no trial starts after this many seconds of searching")
    max_gpu_hours: PositiveFloat | None = Field(
        None, description="no trial starts after the trials used this many hours of a slot (a GPU, or a core)"
    )
    target: float | None = Field(None, description="the search ends when the first objective reaches this value")
    patience: PositiveInt | None = Field(
        None, description="the search ends after this many trials without a better one"
    )
    retries: NonNegativeInt = Field(1, description="further attempts of a trial that lost a rank or a host")
    seed: NonNegativeInt = Field(0, description="seed of the sampler")
