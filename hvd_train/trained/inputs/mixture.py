"""Inputs of a mixture of data sources, whose samples are made alike."""

from __future__ import annotations

from dataclasses import replace

from hvd_train.data.fitted import of_sources
from hvd_train.errors import UserError
from hvd_train.trained import input
from hvd_train.trained.input import Input, InputContext


def create(context: InputContext) -> Input:
    """Return the input of the first source; UserError if another source makes inputs in another way."""
    sections = context.section.options["sources"]
    parts = of_sources(context.document, len(sections)) if "sources" in context.document else [{}] * len(sections)
    other = next((number for number, part in enumerate(parts) if part != parts[0]), None)
    if other is not None:
        raise UserError(
            f"the run is of a mixture whose sources make inputs in different ways: sources[{other}] has another fit than "
            "sources[0], so that new inputs have no known form; train on one table of all rows"
        )
    return input.create(replace(context, document=parts[0], section=sections[0]))
