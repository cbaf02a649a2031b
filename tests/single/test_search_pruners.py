"""Pruners decide as Optuna's do, and asha promotes what a reference says."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from cli.search.pruner import Continuation
from cli.search.pruners.hyperband import bracket_of, count_brackets, shares
from cli.search.records import CONTINUES
from cli.search.space import Space
from hvd_train.config import plugins

optuna.logging.set_verbosity(optuna.logging.WARNING)

PRUNERS = "cli.search.pruners"
EMPTY = Space(())


def frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def made(name: str, **options: Any) -> Any:
    return plugins.create(PRUNERS, name, **options)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    CASES: list[tuple[str, dict[str, Any], Callable[[], optuna.pruners.BasePruner]]] = [
        ("none", {}, optuna.pruners.NopPruner),
        ("median", {}, lambda: optuna.pruners.MedianPruner(5, 0)),
        ("median", {"startup": 2, "warmup": 3}, lambda: optuna.pruners.MedianPruner(2, 3)),
        ("percentile", {}, lambda: optuna.pruners.PercentilePruner(25.0, 5, 0)),
        (
            "percentile",
            {"percentile": 60.0, "startup": 1, "warmup": 2},
            lambda: optuna.pruners.PercentilePruner(60.0, 1, 2),
        ),
        ("patience", {}, lambda: optuna.pruners.PatientPruner(None, 5, 0.0)),
        ("patience", {"patience": 2, "min_delta": 0.05}, lambda: optuna.pruners.PatientPruner(None, 2, 0.05)),
        ("asha", {}, lambda: optuna.pruners.SuccessiveHalvingPruner(1, 3)),
        ("asha", {"eta": 2, "first": 2}, lambda: optuna.pruners.SuccessiveHalvingPruner(2, 2)),
        ("hyperband", {"last": 9}, lambda: optuna.pruners.HyperbandPruner(1, 9, 3)),
        ("hyperband", {"eta": 2, "first": 2, "last": 16}, lambda: optuna.pruners.HyperbandPruner(2, 16, 2)),
    ]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("name", "options", "make"), CASES)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::RuntimeWarning")
def test_decisions_are_those_of_optuna(
    name: str, options: dict[str, Any], make: Callable[[], optuna.pruners.BasePruner], direction: str
) -> None:
    """Run random curves in parallel, in a random order, some of which have nan."""
    pruner, reference = made(name, **options), make()
    chance = random.Random(f"{name}{options}")
    study = optuna.create_study(direction=direction, study_name="s")
    running: list[tuple[optuna.Trial, int]] = []
    decisions = []
    asked = 0
    while asked < 50 or running:
        if len(running) < 5 and asked < 50:
            running.append((study.ask(), 0))
            asked += 1
        trial, step = running.pop(chance.randrange(len(running)))
        step += 1
        trial.report(math.nan if chance.random() < 0.02 else round(chance.random(), 1), step)
        own = frozen(study, trial.number)
        expected = reference.prune(study, own)
        assert pruner.stops(study, own) is bool(expected)
        decisions.append(expected)
        if expected:
            study.tell(trial, state=TrialState.PRUNED)
        elif step == 17:
            study.tell(trial, 0.0)
        else:
            running.append((trial, step))
    assert any(decisions) is (name != "none")
    assert not all(decisions)


# Successive halving with promotion, against a reference that knows the configurations.


def top(value: float, values: list[float], eta: int, sign: int) -> bool:
    """Return True if fewer than max(1, n // eta) of the n values are better than `value`."""
    return sum(sign * v > sign * value for v in values) < max(1, len(values) // eta)


def reference(curves: list[list[float]], stopped: list[bool], eta: int, first: int, sign: int) -> int | None:
    """Return the configuration to promote: of those that stopped, the best one of the highest rung."""
    rungs = [first * eta**k for k in range(10)]
    found = []
    for number, curve in enumerate(curves):
        passed = [r for r in rungs if r <= len(curve)]
        if stopped[number] and passed and not math.isnan(curve[passed[-1] - 1]):
            rung = passed[-1]
            values = [c[rung - 1] for c in curves if len(c) >= rung and not math.isnan(c[rung - 1])]
            if top(curve[rung - 1], values, eta, sign):
                found.append((rung, sign * curve[rung - 1], -number))
    return -max(found)[2] if found else None


@pytest.mark.parametrize("seed", range(6))
def test_asha_promotes_the_best_of_the_highest_rung(seed: int) -> None:
    chance = random.Random(seed)
    eta, first, sign = (3, 1, -1) if seed % 2 else (2, 2, 1)
    pruner = made("asha", eta=eta, first=first)
    study = optuna.create_study(direction="maximize" if sign == 1 else "minimize")
    curves: list[list[float]] = []  # of each configuration
    stopped: list[bool] = []
    newest: list[int] = []  # trial of each configuration
    owner: dict[int, int] = {}
    promotions = 0
    running: list[optuna.Trial] = []
    while len(curves) < 40 or running:
        expected = reference(curves, stopped, eta, first, sign)
        found = pruner.continuation(study, EMPTY)
        assert (None if found is None else found.source) == (None if expected is None else newest[expected])
        if len(running) < 4:
            if found is not None and expected is not None:
                assert found.params == frozen(study, found.source).params
                study.enqueue_trial(found.params, user_attrs={CONTINUES: found.source})
                stopped[expected] = False
                promotions += 1
            elif len(curves) < 40:
                expected = len(curves)
                curves.append([])
                stopped.append(False)
                newest.append(-1)
            if expected is not None:
                running.append(study.ask())
                newest[expected], owner[running[-1].number] = running[-1].number, expected
        if not running:
            break
        trial = running.pop(chance.randrange(len(running)))
        own = owner[trial.number]
        curve = curves[own]
        curve.append(math.nan if chance.random() < 0.03 else round(chance.random(), 1 if seed < 3 else 9))
        trial.report(curve[-1], len(curve))
        stops = pruner.stops(study, frozen(study, trial.number))
        values = [c[len(curve) - 1] for c in curves if len(c) >= len(curve) and not math.isnan(c[len(curve) - 1])]
        at_rung = len(curve) in [first * eta**k for k in range(10)]
        assert stops is (at_rung and (math.isnan(curve[-1]) or not top(curve[-1], values, eta, sign)))
        if stops:
            stopped[own] = True
            study.tell(trial, state=TrialState.PRUNED)
        elif len(curve) == 20:
            study.tell(trial, curve[-1] if not math.isnan(curve[-1]) else 0.0)
        else:
            running.append(trial)
    assert promotions >= 3
    assert any(len(c) > 9 for c in curves)


def report(study: optuna.Study, curve: dict[int, float], state: TrialState, source: int | None = None) -> int:
    study.enqueue_trial({}, user_attrs={} if source is None else {CONTINUES: source})
    trial = study.ask()
    for step, value in curve.items():
        trial.report(value, step)
    if state != TrialState.RUNNING:
        study.tell(trial, curve[max(curve)] if state == TrialState.COMPLETE else None, state)
    return trial.number


def test_a_continued_trial_counts_once_at_a_rung() -> None:
    study = optuna.create_study()
    pruner = made("asha", eta=2)
    pruned = TrialState.PRUNED
    report(study, {1: 0.5}, pruned)
    report(study, {1: 0.4, 2: 0.3}, pruned)
    assert pruner.continuation(study, EMPTY) == Continuation(1, {})
    # The continuation reports the evaluations before it again. Three values at the first rung, not four: one goes on.
    running = report(study, {1: 0.4, 2: 0.3, 3: 0.2}, TrialState.RUNNING, source=1)
    report(study, {1: 0.6}, pruned)
    assert pruner.continuation(study, EMPTY) is None
    report(study, {1: 0.7}, pruned)
    assert pruner.continuation(study, EMPTY) == Continuation(0, {})
    study.tell(running, state=TrialState.FAIL)
    assert pruner.continuation(study, EMPTY) == Continuation(0, {})  # what failed is not continued


def test_hyperband_promotes_within_a_bracket_and_waits_for_a_length() -> None:
    study = optuna.create_study(study_name="s")
    pruner = made("hyperband", eta=3)
    budgets = shares(count_brackets(1, 9, 3), 3)
    brackets = [bracket_of("s", number, budgets) for number in range(40)]
    assert set(brackets) == {0, 1, 2}
    for number in range(39):
        report(study, {1: number / 100, 2: number / 100, 3: number / 100}, TrialState.PRUNED)
    assert pruner.continuation(study, EMPTY) is None
    running = report(study, dict.fromkeys(range(1, 10), 5.0), TrialState.RUNNING)
    assert not pruner.stops(study, frozen(study, running))
    study.tell(running, 5.0)
    # The highest rung within three evaluations is 3, in the brackets 0 and 1; the best trial of both is promoted first.
    expected = next(number for number in range(39) if brackets[number] < 2)
    assert pruner.continuation(study, EMPTY) == Continuation(expected, {})


@pytest.mark.parametrize(
    ("first", "last", "eta", "count"), [(1, 1, 3, 1), (1, 2, 3, 1), (1, 3, 3, 2), (1, 243, 3, 6), (2, 17, 2, 4)]
)
def test_brackets_begin_at_powers_of_eta(first: int, last: int, eta: int, count: int) -> None:
    assert count_brackets(first, last, eta) == count


def test_a_large_study_is_decided_in_milliseconds() -> None:
    import time

    from optuna.trial import create_trial

    study = optuna.create_study()
    curves = [{1: i / 5000, 2: 0.5, 3: 0.5} if i % 3 else {1: 1 + i / 5000} for i in range(5000)]
    study.add_trials([create_trial(state=TrialState.PRUNED, value=1.0, intermediate_values=curve) for curve in curves])
    pruner = made("asha")
    start = time.perf_counter()
    assert pruner.continuation(study, EMPTY) is not None
    assert time.perf_counter() - start < 2  # 0.03 s on a free core
