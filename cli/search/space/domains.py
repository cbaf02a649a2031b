"""The values that a field may take, and their form as parameters of Optuna."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hvd_train.text import strict_json

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Uniform:
    """Numbers from `low` to `high`, on a logarithmic scale if `log`, in steps of `step` if given."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Ask `trial` for the parameter `name`."""
        return trial.suggest_float(name, self.low, self.last, step=self.step, log=self.log)

    def value(self, param: float) -> float:
        """Return the value of YAML of a parameter of Optuna: 0.3 for 0.1 + 0.2 in steps of 0.1."""
        return float(param) if self.step is None else self.at(round((param - self.low) / self.step))

    def param(self, value: float) -> float:
        """Return the parameter of Optuna of a value of YAML."""
        return value

    def at(self, index: int) -> float:
        """Return the number at `index` of the grid, which decimal numbers make exact."""
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    @property
    def last(self) -> float:
        """The largest number of the grid."""
        count = self.count()
        return self.high if count is None else self.at(count - 1)

    def count(self) -> int | None:
        """Return the number of values, None if there is no end of them."""
        if self.step is None:
            return None
        return int((Decimal(repr(self.high)) - Decimal(repr(self.low))) // Decimal(repr(self.step))) + 1

    def probes(self) -> tuple[float, ...]:
        """Return the values that stand for all others in a check."""
        return (self.low, self.last)

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or (Decimal(repr(value)) - Decimal(repr(self.low))) % Decimal(repr(self.step)) == 0

    def describe(self) -> dict[str, Any]:
        """Return the domain as JSON."""
        return {"kind": "uniform", **asdict(self)}

    def __str__(self) -> str:
        kind = "log" if self.log else "uniform"
        return f"{kind}({', '.join(repr(v) for v in (self.low, self.high, self.step) if v is not None)})"


@dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        """Ask `trial` for the parameter `name`."""
        return trial.suggest_int(name, self.low, self.last, step=self.step, log=self.log)

    def value(self, param: int) -> int:
        """Return the value of YAML of a parameter of Optuna."""
        return int(param)

    def param(self, value: int) -> int:
        """Return the parameter of Optuna of a value of YAML."""
        return value

    def at(self, index: int) -> int:
        """Return the number at `index` of the grid."""
        return self.low + index * self.step

    @property
    def last(self) -> int:
        """The largest number of the grid."""
        return self.at(self.count() - 1)

    def count(self) -> int:
        """Return the number of values."""
        return (self.high - self.low) // self.step + 1

    def probes(self) -> tuple[int, ...]:
        """Return the values that stand for all others in a check."""
        return (self.low, self.last)

    def contains(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def describe(self) -> dict[str, Any]:
        """Return the domain as JSON."""
        return {"kind": "int", **asdict(self)}

    def __str__(self) -> str:
        step = f", {self.step}" if self.step != 1 else ""
        return f"{'logint' if self.log else 'int'}({self.low}, {self.high}{step})"


@dataclass(frozen=True)
class Choice:
    """One of `values`, which are values of YAML.

    Optuna takes numbers, texts, true, false and null as they are. It gets JSON texts if another
    value is among them, or if Python takes two of them for equal, such as 1 and true.
    """

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Ask `trial` for the parameter `name`."""
        return trial.suggest_categorical(name, self._categories())

    def value(self, param: Any) -> Any:
        """Return the value of YAML of a parameter of Optuna."""
        return self.values[self._categories().index(param)]

    def param(self, value: Any) -> Any:
        """Return the parameter of Optuna of a value of YAML."""
        return self._categories()[self.index(value)]

    def index(self, value: Any) -> int:
        """Return the position of `value`, which is among the values."""
        return next(i for i, v in enumerate(self.values) if same(v, value))

    def count(self) -> int:
        """Return the number of values."""
        return len(self.values)

    def probes(self) -> tuple[Any, ...]:
        """Return all values, none of which stands for another in a check."""
        return self.values

    def contains(self, value: Any) -> bool:
        return any(same(v, value) for v in self.values)

    def describe(self) -> dict[str, Any]:
        """Return the domain as JSON."""
        return {"kind": "choice", "values": list(self.values)}

    def __str__(self) -> str:
        return strict_json.dumps(list(self.values))

    def _categories(self) -> list[Any]:
        plain = all(isinstance(v, bool | int | float | str | None) for v in self.values)
        if plain and len(set(self.values)) == len(self.values):
            return list(self.values)
        return [strict_json.dumps(v) for v in self.values]


Domain = Uniform | Integer | Choice


def same(a: Any, b: Any) -> bool:
    """Return True if `a` and `b` are the same value of YAML; 1, 1.0 and true are three values."""
    return strict_json.dumps(a) == strict_json.dumps(b)
