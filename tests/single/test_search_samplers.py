"""Samplers choose what Optuna's choose, enumerate a grid once, and continue a population from the study alone."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cli.search.pruner import Continuation
from cli.search.quiet import quiet
from cli.search.records import CONTINUES, INFEASIBLE
from cli.search.space import Space, parse_space
from hvd_train.config import plugins
from hvd_train.errors import UserError

optuna.logging.set_verbosity(optuna.logging.WARNING)

SAMPLERS = "cli.search.samplers"
SEED = 7


def space(section: dict[str, Any], constraints: list[str] = []) -> Space:
    return parse_space(section, constraints, [], lambda field: f"s.yaml:{field}")


MIXED = space(
    {
        "lr": "log(1e-4, 1e-1)",
        "momentum": "uniform(0, 0.9, 0.1)",
        "layers": "int(1, 5)",
        "width": "logint(8, 256)",
        "name": ["SGD", "Adam"],
        "nesterov": {"range": [True, False], "when": "name=SGD"},
        "beta": {"range": "uniform(0.5, 1)", "when": "name=Adam"},
    }
)


def ask_optuna(trial: optuna.Trial) -> dict[str, Any]:
    """Ask as a user of Optuna would for `MIXED`."""
    params: dict[str, Any] = {
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "momentum": trial.suggest_float("momentum", 0, 0.9, step=0.1),
        "layers": trial.suggest_int("layers", 1, 5),
        "width": trial.suggest_int("width", 8, 256, log=True),
        "name": trial.suggest_categorical("name", ["SGD", "Adam"]),
    }
    if params["name"] == "SGD":
        params["nesterov"] = trial.suggest_categorical("nesterov", [True, False])
    else:
        params["beta"] = trial.suggest_float("beta", 0.5, 1)
    return params


def loss(params: dict[str, Any]) -> float:
    own = params["beta"] if "beta" in params else 0.3 + params["nesterov"]
    return (math.log10(params["lr"]) + 2) ** 2 + params["momentum"] / 7 + params["layers"] / params["width"] + own


def tell(study: optuna.Study, ask: Callable[[optuna.Trial], Any], count: int) -> list[dict[str, Any]]:
    for _ in range(count):
        trial = study.ask()
        ask(trial)
        study.tell(trial, loss(trial.params))
    return [t.params for t in study.get_trials(deepcopy=False)]


def direct(name: str) -> optuna.samplers.BaseSampler:
    """Return the sampler of Optuna, made without ddl."""
    s = optuna.samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "random": lambda: s.RandomSampler(seed=SEED),
            "sobol": lambda: s.QMCSampler(qmc_type="sobol", scramble=True, seed=SEED),
            "tpe": lambda: s.TPESampler(
                seed=SEED, n_startup_trials=10, multivariate=True, group=True, constant_liar=True
            ),
            "cmaes": lambda: s.CmaEsSampler(seed=SEED),
            "gp": lambda: s.GPSampler(seed=SEED, n_startup_trials=3),
            "pbt": lambda: s.RandomSampler(seed=SEED),
        }[name]()


def ours(name: str, space: Space, trials: int = 0, **options: Any) -> optuna.samplers.BaseSampler:
    sampler: optuna.samplers.BaseSampler = plugins.create(SAMPLERS, name, **options).optuna(space, SEED, trials)
    return sampler


@pytest.mark.parametrize("name", ["random", "sobol", "tpe", "cmaes", "gp", "pbt"])
def test_suggestions_are_those_of_optuna(name: str) -> None:
    # A trial of gp takes 0.1 s or more. Two of its five are no random ones.
    count, options = (5, {"startup": 3}) if name == "gp" else (40, {})
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna's own samplers warn about conditions
    expected = tell(optuna.create_study(sampler=direct(name)), ask_optuna, count)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert tell(optuna.create_study(sampler=ours(name, MIXED, **options)), MIXED.suggest, count) == expected
    assert len({str(p) for p in expected}) > count / 2


def test_samplers_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", optuna.exceptions.ExperimentalWarning)
        for name in ("sobol", "tpe", "cmaes", "grid"):
            made = space({"a": "int(1, 9)", "c": [1, 2], "b": {"range": "int(1, 3)", "when": "c=1"}})
            study = optuna.create_study(sampler=ours(name, made))
            for _ in range(12):
                trial = study.ask()
                study.tell(trial, made.suggest(trial)["a"])
    assert capfd.readouterr() == ("", "")


def test_gp_is_silent_about_an_optional_package() -> None:
    code = """
from cli.search.samplers.gp import create
from cli.search.space import Space
create().optuna(Space(()), 0)
import optuna._gp.batched_lbfgsb
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_resumed_search_does_not_repeat_its_first_trials() -> None:
    for name in ("random", "tpe", "pbt", "sobol"):
        study = optuna.create_study(sampler=ours(name, MIXED))
        tell(study, MIXED.suggest, 4)
        study.sampler = ours(name, MIXED, trials=4)
        params = tell(study, MIXED.suggest, 4)
        assert len({str(p) for p in params}) == 8, name


def test_sobol_goes_on_in_its_sequence_after_a_resume() -> None:
    plain = space({"x": "uniform(0, 1)", "y": "uniform(0, 1)"})
    studies = [optuna.create_study(sampler=ours("sobol", plain)) for _ in range(2)]
    for i in range(9):
        if i == 5:
            studies[1].sampler = ours("sobol", plain, trials=5)
        for study in studies:
            trial = study.ask()
            plain.suggest(trial)
            study.tell(trial, 0.0)
    assert [t.params for t in studies[0].trials] == [t.params for t in studies[1].trials]


def test_cmaes_stores_no_pickle_and_goes_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    plain = space({"x": "uniform(-5, 5)", "y": "uniform(0, 1, 0.1)", "z": "logint(1, 99)"})
    journal = tmp_path / "journal.log"

    def go(sampler: optuna.samplers.BaseSampler) -> list[float]:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="s",
            load_if_exists=True,
            sampler=sampler,
        )
        values = []
        for _ in range(20):
            trial = study.ask()
            point = plain.suggest(trial)
            values.append((point["x"] - 2) ** 2 + point["y"] + abs(point["z"] - 9) / 9)
            study.tell(trial, values[-1])
        return values

    first = go(ours("cmaes", plain))
    monkeypatch.setattr(pickle, "loads", lambda text: pytest.fail("unpickled a value of the journal"))
    second = go(ours("cmaes", plain, trials=20))
    assert "cma:optimizer" not in journal.read_text()
    assert sum(second) < sum(first)


def test_cmaes_needs_a_number_and_grid_an_end() -> None:
    with pytest.raises(UserError, match="the sampler cmaes searches numbers, and the space has only lists"):
        ours("cmaes", space({"a": [1, 2]}))
    with pytest.raises(UserError, match=r"s\.yaml:b: b: log\(0\.1, 1\.0\) has no end of values for the sampler grid"):
        ours("grid", space({"a": [1, 2], "b": "log(0.1, 1)"}))


def test_grid_tries_each_point_once_though_trials_fail_run_in_parallel_and_resume() -> None:
    made = space(
        {
            "name": ["SGD", "Adam"],
            "momentum": {"range": "uniform(0, 0.9, 0.3)", "when": "name=SGD"},
            "hidden": [[32], [64, 64]],
            "layers": "logint(1, 3)",
        },
        ["layers < 3 or name == 'SGD'"],
    )
    size = made.size()
    assert size == (4 + 1) * 2 * 3
    study = optuna.create_study(sampler=ours("grid", made))
    running: list[optuna.Trial] = []
    for i in range(size):
        if i % 7 == 6:
            study.sampler = ours("grid", made, trials=i)
        trial = study.ask()
        values = made.suggest(trial)
        if not made.admits(values):
            trial.set_user_attr(INFEASIBLE, True)
            study.tell(trial, state=TrialState.FAIL)
        elif i % 5 == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif i % 5 == 1:
            trial.report(1.0, 1)
            study.tell(trial, state=TrialState.PRUNED)
            study.enqueue_trial(trial.params, user_attrs={CONTINUES: trial.number})
            again = study.ask()
            made.suggest(again)
            study.tell(again, 1.0)
        else:
            running.append(trial)
            if len(running) == 3:
                study.tell(running.pop(0), 1.0)
    own = [t for t in study.get_trials(deepcopy=False) if CONTINUES not in t.user_attrs]
    points = [str(sorted(made.values(t.params).items())) for t in own]
    assert len(points) == len(set(points)) == size
    assert sum(INFEASIBLE in t.user_attrs for t in own) == 2


# Population based training.

NUMBERS = space(
    {
        "lr": "log(1e-4, 1e-1)",
        "dropout": "uniform(0, 0.5, 0.1)",
        "batch": "logint(8, 64)",
        "layers": "int(1, 9, 2)",
        "name": ["a", "b", "c"],
        "extra": {"range": "uniform(-1, 1)", "when": "name=b"},
    }
)


class Population:
    """Runs a search on a clock that ends running trials in a random order."""

    def __init__(self, study: optuna.Study, space: Space, seed: int, length: int = 6, **options: Any) -> None:
        import random

        self.study, self.space, self.length, self.options = study, space, length, options
        self.chance = random.Random(seed)
        self.running: list[optuna.Trial] = []
        self.continuations: list[tuple[Continuation, int]] = []

    @property
    def pruner(self) -> Any:
        return plugins.create(SAMPLERS, "pbt", **self.options).pruner()  # a new one each time, as after a resume

    def start(self, total: int) -> bool:
        found = self.pruner.continuation(self.study, self.space)
        started = sum(CONTINUES not in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        if found is None and started == total:
            return False
        if found is not None:
            self.continuations.append((found, len(self.study.get_trials(deepcopy=False))))
            self.study.enqueue_trial(found.params, user_attrs={CONTINUES: found.source})
            if self.chance.random() < 0.5:  # the study may be asked again before the trial starts
                again = self.pruner.continuation(self.study, self.space)
                assert again is None or again != found
        trial = self.study.ask()
        self.space.suggest(trial)
        self.running.append(trial)
        return True

    def end(self) -> None:
        """Let a running trial evaluate until it stops or has trained for the whole length."""
        trial = self.running.pop(self.chance.randrange(len(self.running)))
        source = trial.user_attrs.get(CONTINUES)
        in_place = source is not None and self.study.get_trials(deepcopy=False)[source].params == trial.params
        step = (self.study.get_trials(deepcopy=False)[source].last_step or 0) if in_place and source is not None else 0
        done = trained(self.study, source) if source is not None else 0
        while True:
            step, done = step + 1, done + 1
            trial.report(self.chance.random(), step)
            if done == self.length:
                self.study.tell(trial, self.chance.random())
                return
            if self.pruner.stops(self.study, self.study.get_trials(deepcopy=False)[trial.number]):
                self.study.tell(trial, state=TrialState.PRUNED)
                return


def trained(study: optuna.Study, number: int) -> int:
    """Return the evaluations of a trial and of those before it."""
    trial = study.get_trials(deepcopy=False)[number]
    source = trial.user_attrs.get(CONTINUES)
    if source is None:
        return len(trial.intermediate_values)
    return trained(study, source) + len(trial.intermediate_values)


@pytest.mark.parametrize("seed", range(4))
def test_a_population_continues_each_ended_trial_once(seed: int) -> None:
    study = optuna.create_study(sampler=ours("pbt", NUMBERS), direction="maximize" if seed % 2 else "minimize")
    study.set_user_attr("trials", 6)
    search = Population(study, NUMBERS, seed, population=6, every=1 + seed // 2, length=6)
    slots = 2 + seed
    while True:
        while len(search.running) < slots and search.start(6):
            pass
        if not search.running:
            break
        search.end()
    trials = study.get_trials(deepcopy=False)
    assert sum(CONTINUES not in t.user_attrs for t in trials) == 6
    # Each of six members trains for the whole length. Each ended trial is followed once, nothing is left over.
    assert [t.state for t in trials].count(TrialState.COMPLETE) == 6
    assert [t.state for t in trials].count(TrialState.PRUNED) == len(trials) - 6 == len(search.continuations)
    in_place = [f.source for f, _ in search.continuations if f.params == trials[f.source].params]
    assert len(in_place) == len(set(in_place))
    copies = [f for f, _ in search.continuations if f.params != trials[f.source].params]
    assert copies
    for found in copies:
        values = NUMBERS.values(found.params)
        assert NUMBERS.params(values) == found.params
        for dimension in NUMBERS.dimensions:
            assert (dimension.field in values) == dimension.varies(values)
            assert dimension.field not in values or dimension.domain.contains(values[dimension.field])


def member(
    study: optuna.Study, params: dict[str, Any], curve: dict[int, float], state: TrialState, source: int | None = None
) -> FrozenTrial:
    study.enqueue_trial(params, user_attrs={} if source is None else {CONTINUES: source})
    trial = study.ask()
    NUMBERS.suggest(trial)
    for step, value in curve.items():
        trial.report(value, step)
    if state == TrialState.PRUNED:
        study.tell(trial, state=state)
    return study.get_trials(deepcopy=False)[trial.number]


POINT = {"lr": 0.01, "dropout": 0.2, "batch": 16, "layers": 3, "name": "a"}


def test_a_bad_member_copies_a_good_one_and_the_others_go_on() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("trials", 4)
    pruner = plugins.create(SAMPLERS, "pbt", population=4, resample=0.0).pruner()
    points = [{**POINT, "lr": lr} for lr in (0.01, 0.02, 0.03, 0.04)]
    for number, value in enumerate([0.5, 0.1, 0.9]):
        member(study, points[number], {1: value}, TrialState.PRUNED)
        assert pruner.continuation(study, NUMBERS) is None  # the population is not complete
    member(study, points[3], {1: 0.2}, TrialState.RUNNING)
    # The trial that ended first goes on, with its own values since it is not the worst.
    assert pruner.continuation(study, NUMBERS) == Continuation(0, points[0])
    member(study, points[0], {2: 0.6}, TrialState.RUNNING, source=0)
    found = pruner.continuation(study, NUMBERS)
    assert found == pruner.continuation(study, NUMBERS)
    assert found is not None
    assert found.source == 2
    new = found.params
    assert new["lr"] == pytest.approx(0.03 * 1.2) or new["lr"] == pytest.approx(0.03 / 1.2)
    assert new["dropout"] in (0.1, 0.3)  # 0.2 * 1.2 is on no step of 0.1 but the next one is
    assert new["batch"] in (13, 19)
    assert new["layers"] in (1, 5)
    assert new["name"] == "b"
    assert -1 <= new["extra"] <= 1
    member(study, new, {}, TrialState.RUNNING, source=2)
    # The copied member goes on too. The next is worse than it by now, but not the worst.
    assert pruner.continuation(study, NUMBERS) == Continuation(2, points[2])
    member(study, points[2], {}, TrialState.RUNNING, source=2)
    assert pruner.continuation(study, NUMBERS) is None


def test_a_trial_of_a_population_stops_after_its_own_evaluations() -> None:
    study = optuna.create_study()
    pruner = plugins.create(SAMPLERS, "pbt", every=2).pruner()
    assert not pruner.stops(study, member(study, POINT, {1: 0.5}, TrialState.RUNNING))
    first = member(study, POINT, {1: 0.5, 2: 0.4}, TrialState.PRUNED)
    assert pruner.stops(study, first)
    in_place = member(study, POINT, {3: 0.3}, TrialState.RUNNING, source=first.number)
    assert not pruner.stops(study, in_place)
    again = member(study, POINT, {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}, TrialState.RUNNING, source=first.number)
    assert pruner.stops(study, again)
    assert not pruner.stops(study, member(study, POINT, {1: 0.5, 2: 0.4, 3: 0.3}, TrialState.RUNNING, first.number))
    odd = member(study, POINT, {1: 0.5, 2: 0.4, 3: 0.3}, TrialState.PRUNED)
    whole = dict.fromkeys(range(1, 6), 0.1)
    assert pruner.stops(study, member(study, POINT, whole, TrialState.RUNNING, source=odd.number))
    copied = {**POINT, "lr": 0.02}
    assert not pruner.stops(study, member(study, copied, {1: 0.3}, TrialState.RUNNING, source=first.number))
    assert pruner.stops(study, member(study, copied, {1: 0.3, 2: 0.1}, TrialState.RUNNING, source=first.number))


def test_a_second_attempt_of_a_copy_replaces_one_member_only() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("trials", 4)
    pruner = plugins.create(SAMPLERS, "pbt", population=4, quantile=0.5).pruner()
    for number, value in enumerate([0.1, 0.2, 0.9, 0.9]):
        member(study, {**POINT, "lr": 0.01 + number / 100}, {1: value}, TrialState.PRUNED)
    found = pruner.continuation(study, NUMBERS)
    assert found is not None
    assert found.source in (2, 3)
    for _ in range(2):
        failed = member(study, found.params, {}, TrialState.RUNNING, source=found.source)
        study.tell(failed.number, state=TrialState.FAIL)
    again = pruner.continuation(study, NUMBERS)
    assert again is not None
    assert again.source in (2, 3)  # the second member is the next one, and is bad too
    assert again.params != found.params
    member(study, again.params, {}, TrialState.RUNNING, source=again.source)
    assert pruner.continuation(study, NUMBERS) == Continuation(2, study.get_trials(deepcopy=False)[2].params)


def test_a_copy_that_the_constraints_refuse_is_drawn_again() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("trials", 2)
    pruner = plugins.create(SAMPLERS, "pbt", population=2).pruner()
    for value in (0.1, 0.9):
        member(study, {**POINT, "lr": value / 10}, {1: value}, TrialState.PRUNED)
    found = pruner.continuation(study, NUMBERS)
    assert found is not None
    refused = member(study, found.params, {}, TrialState.RUNNING, source=found.source)
    study._storage.set_trial_user_attr(refused._trial_id, INFEASIBLE, True)
    study.tell(refused.number, state=TrialState.FAIL)
    again = pruner.continuation(study, NUMBERS)
    assert again is not None
    assert again.source == found.source == 1
    assert again.params not in (found.params, {**POINT, "lr": 0.09})


def test_a_space_of_one_point_is_never_copied_into_the_folder_of_another_member() -> None:
    one = space({"name": ["a"]})
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("trials", 2)
    for value in (0.1, 0.9):
        trial = study.ask()
        one.suggest(trial)
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    pruner = plugins.create(SAMPLERS, "pbt", population=2).pruner()
    assert pruner.continuation(study, one) == Continuation(0, {"name": "a"})


def test_quiet_leaves_the_filters_of_warnings_as_they_are() -> None:
    before = list(warnings.filters)
    with quiet():
        pass
    assert warnings.filters == before
