"""What a search varies: the domain of each field, conditions, and constraints between fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

JOB_FIELDS = ("np", "strategy")
"""Names in a space that are no fields of the YAML file: the number of ranks, and an entry of `--strategies`."""


@dataclass(frozen=True)
class Uniform:
    """Numbers from `low` to `high`, on a logarithmic scale if `log`, in steps of `step` if given."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of `values`, which are values of YAML."""

    values: tuple[Any, ...]


Domain = Uniform | Integer | Choice


@dataclass(frozen=True)
class Condition:
    """Holds if `field` is varied in the trial and has one of `values`."""

    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Dimension:
    """The `domain` of `field`. The field is varied only where `when` holds."""

    field: str
    domain: Domain
    when: Condition | None = None
    place: str = ""
    """Where the user wrote it, for messages: `file:line`, or the option."""


@dataclass(frozen=True)
class Space:
    """The dimensions of a search; the field of a condition comes before the fields that depend on it."""

    dimensions: tuple[Dimension, ...]
    constraints: tuple[str, ...] = ()

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask `trial` for the value of each field that its conditions admit. Return values of YAML by field."""
        raise NotImplementedError

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of YAML of parameters of Optuna."""
        raise NotImplementedError

    def admits(self, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
        """Return True if `values` satisfy the constraints; `fixed` has the other fields that they name."""
        raise NotImplementedError

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return `values` as overrides of `ddl run`, without the fields of the job (`JOB_FIELDS`)."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the space as JSON, equal for equal spaces, for the comparison at `--resume`."""
        raise NotImplementedError
