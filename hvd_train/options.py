"""The types that a plugin's `create` may use to annotate its options.

`plugins.options` reads those annotations from the source, without importing the plugin, in this module's namespace:
that is how `ddl validate` checks a model's options without importing torch. The text in `Annotated[type, "text"]` says
what the option changes; it ends up in `ddl list` and in the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

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
]
