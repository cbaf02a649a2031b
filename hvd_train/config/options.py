"""The types for the options of a plugin, that is for the keyword-only parameters of its `create`.

`plugins.options` reads the annotations from the source, without importing the plugin, and evaluates
them in the namespace of this module. So `ddl validate` checks the options of a model without
importing torch. The text in `Annotated[type, "text"]` describes the option in `ddl list` and in the
JSON Schema. An option of type `SourceSection` is a section that chooses a data source, one of type
`list[SourceSection]` a list of such sections, and `TokenizerSection` chooses a tokenizer; `create`
gets the sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hvd_train.config.source_section import SourceSection
from hvd_train.config.tokenizer_section import TokenizerSection

Fraction = Annotated[float, Field(ge=0, lt=1)]

__all__ = [
    "Annotated",
    "Any",
    "Field",
    "Fraction",
    "Literal",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "SourceSection",
    "TokenizerSection",
]
