"""The section of cross-validation: which fold of the samples is held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from hvd_train.config.section import Section


class FoldSection(Section):
    """One fold of a cross-validation: its samples are held out, and the others train."""

    folds: Annotated[int, Field(ge=2)] = Field(description="parts of equal size that the samples are divided into")
    index: NonNegativeInt = Field(
        0, description="part that is held out, from 0; with repeats, up to folds x repeats - 1"
    )
    kind: Literal["auto", "stratified", "plain", "grouped", "time"] = Field(
        "auto",
        description="stratified: each part has the same share of each class; plain: random parts; grouped: all samples of a "
        "group are in one part; time: the samples are in the order of time, and only those before the part train; auto: "
        "stratified for classes, otherwise plain",
    )
    group: str | None = Field(
        None,
        description="grouped: column, key or array with the group of each sample; by default the groups that the source "
        "knows, such as the users of ratings",
    )
    repeats: PositiveInt = Field(
        1, description="divisions, each with a seed of its own: index i is part i % folds of division i // folds"
    )

    @property
    def part(self) -> int:
        """The held-out part within its division."""
        return self.index % self.folds

    @property
    def repetition(self) -> int:
        """The number of the division, from 0."""
        return self.index // self.folds

    @model_validator(mode="after")
    def _fits(self) -> FoldSection:
        if self.index >= self.folds * self.repeats:
            raise ValueError(
                f"'index' is {self.index}, expected at most {self.folds * self.repeats - 1} for {self.folds} folds and "
                f"{self.repeats} repeats"
            )
        if self.group is not None and self.kind != "grouped":
            raise ValueError(f"'group' is for kind: grouped, and 'kind' is {self.kind}; set kind: grouped")
        if self.kind == "time" and self.repeats > 1:
            raise ValueError("kind: time has one division only; leave 'repeats' out")
        return self


def names_test_samples(option: str) -> bool:
    """Return True if `option` of a data source says where test samples are, which leaves none to hold out."""
    return option.startswith("test_") and option != "test_fraction"
