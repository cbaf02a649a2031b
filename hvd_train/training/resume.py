"""The rules by which a run resumes from a checkpoint of another configuration.

They hold for `--resume`, `--max-restarts` and requeued jobs. A checkpoint contains `facts` about
the run that wrote it. `compare` looks up each fact that differs in `RULES`, which name the parts of
the saved state to reset or to convert. A fact without a rule changes no state: its new value
applies from here on. `docs/resuming.md` shows the same table to users.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.text import strict_json
from hvd_train.text.strict_json import dumps_exact, loads_exact

if TYPE_CHECKING:
    from hvd_train.config.schema import Config
    from hvd_train.gradients.optimizer import State

FORMAT = 2
"""The format of state.json. Format 1 has no number and no facts."""

Facts = dict[str, Any]
"""Every field of the configuration, and facts about model and data, by dotted name.

Values are those of JSON.
"""

Part = Literal[
    "values", "optimizer", "scaling", "strategy", "replicas", "residuals", "generators", "statistics", "speeds",
    "experience", "epoch", "best"
]  # fmt: skip

PARTS: dict[Part, str] = {
    "values": "parameters, buffers and the optimizer's state",
    "optimizer": "the optimizer's state",
    "scaling": "the loss scale",
    "strategy": "the state of sync.strategy",
    "replicas": "each rank's own replica",
    "residuals": "the state of compression",
    "generators": "each rank's random generators",
    "statistics": "each rank's own running statistics",
    "speeds": "the measured speeds of ranks",
    "experience": "each rank's episodes and experience",
    "epoch": "the current epoch",
    "best": "the best value of early stopping",
}
"""The parts of the saved state, in the order in which messages name them."""


@dataclass(frozen=True)
class Rule:
    """If the fact `name` differs, and not `fits(was, now)`, `parts` are reset or converted."""

    name: str
    parts: tuple[Part, ...]
    effect: Literal["reset", "converted"] = "reset"
    fits: Callable[[Any, Any], bool] = lambda was, now: False


def _one_family(was: str, now: str) -> bool:
    """Return True for Adam and AdamW: their states are alike, and only weight decay differs."""
    return {was, now} <= {"Adam", "AdamW"}


def _dropped(was: Any, now: Any) -> bool:
    """Return True if the optimizer's state has no further entry."""
    return bool(was) or not now


_OF_EACH_RANK: tuple[Part, ...] = ("replicas", "residuals", "generators", "statistics", "speeds", "experience")

RULES = (
    Rule("train.precision", ("values",), "converted", lambda was, now: "fp64" not in (was, now)),
    Rule("train.precision", ("scaling",), fits=lambda was, now: "fp16" not in (was, now)),
    Rule("optimizer.name", ("optimizer",), fits=_one_family),
    Rule("optimizer.momentum", ("optimizer",), fits=_dropped),
    Rule("optimizer.amsgrad", ("optimizer",), fits=_dropped),
    Rule("optimizer.centered", ("optimizer",), fits=_dropped),
    Rule("optimizer.history_size", ("optimizer",)),
    Rule("trained.elements", ("optimizer",), fits=lambda was, now: None in (was, now)),
    Rule("sync.strategy", ("strategy", "replicas", "residuals")),
    Rule("sync.target", ("strategy", "replicas", "residuals")),
    Rule("sync.mode", ("strategy", "replicas")),
    Rule("sync.backup_workers", ("strategy", "replicas"), fits=lambda was, now: bool(was) == bool(now)),
    Rule("sync.push_sum", ("replicas",)),
    Rule("sync.fraction", ("replicas",)),
    Rule("sync.local_epochs", ("replicas",)),
    Rule("sync.compression.name", ("residuals",)),
    Rule("sync.compression.target", ("residuals",)),
    Rule("sync.compression.rank", ("residuals",)),
    Rule("ranks", _OF_EACH_RANK),
    Rule("parallel.pipeline", _OF_EACH_RANK),
    Rule("parallel.tensor", _OF_EACH_RANK),
    Rule("data.batch_size", ("epoch",), "converted"),
    Rule("train.accumulate", ("epoch",), "converted"),
    Rule("data.samples", ("epoch",)),
    Rule("data.labels", ("epoch",)),
    Rule("data.fold.*", ("epoch",)),
    Rule("data.partition.name", ("epoch", "speeds")),
    Rule("data.partition.*", ("epoch", "speeds")),
    Rule("data.env", ("epoch", "experience")),
    Rule("data.envs", ("epoch", "experience")),
    Rule("data.steps", ("epoch", "experience")),
    Rule("data.wrappers", ("epoch", "experience")),
    Rule("agent.name", ("epoch", "experience")),
    Rule("agent.target", ("epoch", "experience")),
    Rule("agent.buffer", ("epoch", "experience")),
    Rule("agent.replayed", ("epoch", "experience")),
    Rule("seed", ("generators", "epoch")),
    Rule("train.early_stop.metric", ("best",)),
    Rule("train.early_stop.mode", ("best",)),
)
"""The table. `name.*` matches every field below `name`."""


@dataclass(frozen=True)
class Compatibility:
    """The parts of a checkpoint to reset, and a warning for each fact that changes a part."""

    reset: frozenset[Part]
    warnings: tuple[str, ...]


def facts(config: Config, measured: Facts) -> Facts:
    """Return the facts of a run: the fields of `config`, and those that its ranks `measured`."""
    sections = config.model_dump(exclude={"checkpoint"})
    normal: Facts = loads_exact(dumps_exact({**dict(_leaves(sections, "")), **measured}))
    return normal


def compare(was: Facts, now: Facts) -> Compatibility:
    """Return what happens to the state of a run with facts `was` in a run with facts `now`.

    A fact that `was` lacks counts as unchanged.
    """
    both = [name for name in now if name in was and was[name] != now[name]]
    reset: set[Part] = set()
    warnings = []
    for name in both:
        rules = [rule for rule in RULES if _names(rule, name) and not rule.fits(was[name], now[name])]
        for effect in ("reset", "converted"):
            parts = [part for part in PARTS for rule in rules if rule.effect == effect and part in rule.parts]
            if effect == "reset":
                reset |= set(parts)
            if parts:
                warnings.append(_sentence(name, was[name], now[name], list(dict.fromkeys(parts)), effect))
    return Compatibility(frozenset(reset), tuple(warnings))


def check_owners(was: Facts, now: Facts) -> None:
    """Raise UserError if a client gets other samples, for which no privacy guarantee holds."""
    for name in now:
        if (name == "seed" or name.startswith("data.partition")) and was.get(name, now[name]) != now[name]:
            raise UserError(
                f"--resume: no epsilon holds for clients whose samples change: {name} was {_short(was[name])}, is "
                f"{_short(now[name])}; resume with the same seed and data.partition, or start a new run"
            )


def newly_trained(was: Facts, now: Facts) -> str | None:
    """Return a warning about parameters that were frozen and are trained now.

    Return None if there are none.
    """
    new = [name for name in now["trained"] if "trained" in was and name not in was["trained"]]
    if not new:
        return None
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    return f"'{new[0]}'{more} was frozen, is trained: its optimizer state is reset"


def difference(was: Mapping[str, Any], now: Mapping[str, Any], *, may_convert: bool) -> str | None:
    """Describe the first difference between two models' tensors; None if those of `was` fit `now`.

    With `may_convert`, floating-point tensors may differ in width.
    """
    for name in sorted({*was, *now}):
        there, here = was.get(name), now.get(name)
        if not _fits(there, here, may_convert=may_convert):
            return f"'{name}' is {_described(there, here)} there and {_described(here, there)} here"
    return None


def fitting(state: State, wanted: Mapping[str, Collection[str]] | None) -> tuple[State, str | None]:
    """Return the part of a saved optimizer state that fits an optimizer with `wanted` entries.

    `wanted` maps parameter names to entries; None takes all of the state. If an entry is missing,
    the state is empty and the second value names the entry. A parameter without any entry has had
    no gradient.
    """
    if wanted is None:
        return state, None
    for name, values in state.items():
        missing = [entry for entry in wanted.get(name, ()) if entry not in values]
        if values and missing:
            return {}, f"'{missing[0]}' of '{name}'"
    kept = {name: {k: v for k, v in values.items() if k in wanted.get(name, ())} for name, values in state.items()}
    return {name: values for name, values in kept.items() if values}, None


def facts_of(state: Mapping[str, Any], model: Mapping[str, Tensor], now: Facts) -> Facts:
    """Return the facts of a checkpoint.

    Format 1 has none, so they are derived from its other contents.
    """
    if "facts" in state:
        known: Facts = state["facts"]
        return known
    ranks, pipeline, tensor = state["layout"]
    wide = any(t.dtype in {torch.float64, torch.complex128} for t in model.values())
    single = now["train.precision"] if now["train.precision"] in {"fp32", "bf16"} else "fp32"
    precision = "fp16" if state["scaler"] != {"dict": []} else "fp64" if wide else single
    parallel = {"parallel.pipeline": pipeline, "parallel.tensor": tensor}
    return {"sync.strategy": state["strategy_name"], "ranks": ranks, "train.precision": precision, **parallel}


def check(state: Any, where: str) -> None:
    """Raise ValueError if `state` cannot be the content of the state.json at `where`.

    Raise UserError if a newer ddl wrote it.
    """
    if not isinstance(state, dict):
        raise ValueError(f"{where}: expected an object, got {type(state).__name__}")
    number = state.get("format", 1)
    if not isinstance(number, int):
        raise ValueError(f"{where}: expected a number as its format, got {number!r}")
    if number > FORMAT:
        raise UserError(
            f"--resume: {where} has format {number}, and this ddl reads formats up to {FORMAT}; "
            "resume with the ddl that wrote it, or update this one"
        )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _names(rule: Rule, name: str) -> bool:
    return name == rule.name or (rule.name.endswith(".*") and name.startswith(rule.name[:-1]))


def _sentence(name: str, was: Any, now: Any, parts: list[Part], effect: str) -> str:
    names = [PARTS[part] for part in parts]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    plural = len(names) > 1 or parts[0] in {"values", "generators", "statistics", "speeds", "experience"}
    return f"{name} was {_short(was)}, is {_short(now)}: {listed} {'are' if plural else 'is'} {effect}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else strict_json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _fits(there: Any, here: Any, *, may_convert: bool) -> bool:
    if not (isinstance(there, Tensor) and isinstance(here, Tensor)):
        return type(there) is type(here)
    kinds = {(t.is_floating_point(), t.is_complex()) for t in (there, here)}
    converts = may_convert and len(kinds) == 1 and kinds != {(False, False)}
    return there.shape == here.shape and (there.dtype == here.dtype or converts)


def _described(value: Any, other: Any) -> str:
    """Describe the shape of `value` if it differs from that of `other`, else its dtype."""
    if not isinstance(value, Tensor):
        return "missing" if value is None else f"a {type(value).__name__}"
    if isinstance(other, Tensor) and value.shape == other.shape:
        return str(value.dtype).removeprefix("torch.")
    return f"of shape {tuple(value.shape)}"
