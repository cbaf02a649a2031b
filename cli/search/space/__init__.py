"""What a search varies: the domain of each field, conditions, and constraints between fields."""

from __future__ import annotations

from cli.search.space.checking import check_space, fields_of, point
from cli.search.space.dimensions import JOB_FIELDS, Condition, Dimension, Space
from cli.search.space.domains import Choice, Domain, Integer, Uniform
from cli.search.space.parsing import parse_space

__all__ = [
    "JOB_FIELDS",
    "Choice",
    "Condition",
    "Dimension",
    "Domain",
    "Integer",
    "Space",
    "Uniform",
    "check_space",
    "fields_of",
    "parse_space",
    "point",
]
