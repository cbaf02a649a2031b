"""The section of a data source that is an option of another data source."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from hvd_train.config.section import PluginSection


class SourceSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.sources"
    product: ClassVar[str] = "a Dataset"
    name: str = Field(description="source of the samples (ddl list data); 'target' in its place names your own")
