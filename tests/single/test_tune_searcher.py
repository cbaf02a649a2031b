"""The loop of a search, with runs that train in no time. `tests/integration/test_tune.py` has real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from cli.hosts.hostfile import Host
from cli.search.pruner import Continuation
from cli.search.records import Record, records
from cli.search.schema import SearchSection
from cli.search.space import Choice, Dimension, Space, Uniform
from cli.tune import searcher, study
from cli.tune.objectives import Objective
from cli.tune.plan import Plan
from cli.tune.runner import Run
from cli.tune.searcher import Searcher
from cli.tune.slots import Slots
from hvd_train.errors import ExitCode

LENGTH = 4
"""Evaluations of a whole run."""


@dataclass
class Fake:
    """A runner whose runs make one evaluation at each `poll`. Their loss is lr / evaluations."""

    codes: Callable[[Run, int], int | None] = lambda run, evaluations: None
    """Returns the exit code with which a run ends after so many evaluations, or None if it goes on."""
    runs: list[Run] = field(default_factory=list)
    crashes_after: int = 10**9
    """Starts after which the search is killed."""
    pace: int = 1
    """Polls for each evaluation."""
    polls: int = 0
    outlives: bool = False

    def start(self, run: Run) -> FakeRun:
        assert run.resume is not None or not run.folder.exists()
        self.runs.append(run)
        if len(self.runs) > self.crashes_after:
            raise SystemExit("killed")
        return FakeRun(self, run)

    def attach(self, folder: Path) -> None: ...

    def close(self) -> None: ...

    def values(self, name: str) -> list[list[Any]]:
        return [[w.partition("=")[2] for w in run.overrides if w.startswith(name)] for run in self.runs]


@dataclass
class FakeRun:
    runner: Fake
    run: Run
    stopping: bool = False
    code: int | None = None

    def __post_init__(self) -> None:
        folder = self.run.folder
        source = self.run.resume if self.run.resume is not None else None
        if source is not None and source != folder:
            shutil.copytree(source, folder / "checkpoints" / source.name)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        saved = max((int(f.name[5:]) for f in (folder / "checkpoints").glob("step-*")), default=0)
        file = folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        draft = folder / "draft"
        draft.write_text("".join(line for line in lines if json.loads(line)["step"] <= saved))
        draft.replace(file)
        self.step = saved

    def poll(self) -> int | None:
        self.runner.polls += 1
        gate = self.run.folder / "gate.json"
        if self.code is None:
            self.stopping |= gate.exists() and json.loads(gate.read_text())["stop"]
            code = self.runner.codes(self.run, self.step)
            if code is not None:
                self.code = code
            elif self.stopping:
                self._save("stopped by a signal")
                self.code = int(ExitCode.STOPPED)
            elif self.step == LENGTH:
                self._save("epochs done")
                self.code = 0
            elif self.runner.polls % self.runner.pace == 0:
                self._evaluate()
        return self.code

    def message(self) -> str:
        return f"ended with {self.code}"

    def stop(self) -> None:
        self.stopping = True

    def kill(self) -> None:
        self.code = 137

    def _evaluate(self) -> None:
        self.step += 1
        (lr,) = (float(w.partition("=")[2]) for w in self.run.overrides if w.startswith("optimizer.lr"))
        fold = next((int(w.partition("=")[2]) for w in self.run.overrides if w.startswith("data.fold.index")), 0)
        row = {"kind": "eval", "step": self.step, "seconds": 1.0, "loss": (lr + fold) / self.step}
        with (self.run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self, ended: str) -> None:
        (self.run.folder / "checkpoints" / f"step-{self.step:08}").mkdir(exist_ok=True)
        (self.run.folder / "summary.json").write_text(json.dumps({"ended": ended}))


class Silent:
    """A view that shows nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def changed(self, record: Record) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, used: int, slots: int) -> None: ...

    def close(self) -> None: ...


class Above:
    """A pruner that stops a trial after an evaluation with a loss above `most`, and continues what it is told to."""

    def __init__(self, most: float, *continued: Continuation) -> None:
        self.most, self.continued, self.asked = most, list(continued), list[tuple[int, int]]()
        self.calls = 0

    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        assert trial.last_step is not None
        self.asked.append((trial.number, trial.last_step))
        return trial.intermediate_values[trial.last_step] > self.most

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        self.calls += 1
        ended = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
        return self.continued.pop(0) if self.continued and self.continued[0].source in ended else None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "POLL", 0.0)


FILE = "model: mlp\ndata: digits\noptimizer: {name: SGD, lr: 0.5}\n"
LR = Space((Dimension("optimizer.lr", Uniform(0.0, 1.0)),))


def search(
    folder: Path,
    runner: Fake,
    *,
    pruner: Any = None,
    trials: int = 6,
    slots: int = 2,
    folds: int = 0,
    space: Space = LR,
    resume: bool = False,
    **section: Any,
) -> tuple[int, list[Record], Searcher]:
    """Search, or go on, and return the exit code, the trials and the searcher."""
    folder.mkdir(exist_ok=True)
    file = folder / "m.yaml"
    file.write_text(FILE)
    plan = Plan(file, (), 1, space, SearchSection(**section), (Objective("loss", "min"),), trials, folds)
    sampler = optuna.samplers.RandomSampler(seed=1)
    journal = study.journal(folder) if resume else study.create(folder, ["min"], {}, sampler)
    journal.study.sampler = sampler
    one = Searcher(plan, folder, journal, pruner, runner, Slots((Host("localhost", slots),)), slots, Silent())  # type: ignore[arg-type]
    return one.run(), records(journal.study), one


def test_all_trials_run_and_their_last_loss_counts(tmp_path: Path) -> None:
    runner = Fake()
    code, found, _ = search(tmp_path / "s", runner)
    assert code == 0
    assert [record.state for record in found] == ["complete"] * 6
    for record in found:
        assert record.objectives == (record.values["optimizer.lr"] / LENGTH,)
        assert record.curve == {k: record.values["optimizer.lr"] / k for k in range(1, LENGTH + 1)}
        assert record.folder == f"trials/{record.number:04}"
        assert record.figures["seconds"] == 1.0
    assert [float(*v) for v in runner.values("optimizer.lr")] == [r.values["optimizer.lr"] for r in found]


def test_no_more_runs_than_slots_at_a_time(tmp_path: Path) -> None:
    _, found, _ = search(tmp_path / "s", Fake(), slots=3)
    edges = sorted(
        (time, change) for r in found for start, end, _ in r.spans for time, change in ((start, 1), (end, -1))
    )
    level = levels = 0
    for _, change in edges:
        level += change
        levels = max(level, levels)
    assert levels == 3
    assert {slot for r in found for *_, slots in r.spans for slot in slots} == {f"localhost:{i}" for i in range(3)}


def test_a_pruned_trial_has_saved_and_is_pruned(tmp_path: Path) -> None:
    pruner = Above(0.4)
    code, found, _ = search(tmp_path / "s", Fake(), pruner=pruner)
    assert code == 0
    bad = [r for r in found if r.values["optimizer.lr"] > 0.4]
    assert bad
    assert [r.state for r in bad] == ["pruned"] * len(bad)
    assert all(len(r.curve) == 1 for r in bad)
    assert all((tmp_path / "s" / r.folder / "checkpoints").iterdir() for r in bad)
    assert len(set(pruner.asked)) == len(pruner.asked)


def test_a_continued_trial_goes_on_in_place_and_does_not_count(tmp_path: Path) -> None:
    runner = Fake()
    _, found, _ = search(tmp_path / "s", runner, pruner=Above(0.0), trials=2, slots=1)
    params = {"optimizer.lr": found[0].values["optimizer.lr"]}
    runner, pruner = Fake(), Above(1.0, Continuation(0, params))
    _, found, _ = search(tmp_path / "s", runner, pruner=pruner, trials=3, slots=1, resume=True)
    assert [(r.number, r.continues, r.state) for r in found] == [
        (0, None, "pruned"), (1, None, "pruned"), (2, 0, "complete"), (3, None, "complete"),
    ]  # fmt: skip
    assert found[2].folder == found[0].folder
    assert runner.runs[0].resume == runner.runs[0].folder == tmp_path / "s" / found[0].folder
    assert list(found[2].curve) == [1, 2, 3, 4]
    assert (2, 1) not in pruner.asked
    _, found, _ = search(tmp_path / "s", Fake(), pruner=Above(1.0), trials=4, slots=1, resume=True)
    assert [r.continues for r in found] == [None, None, 0, None, None]


def test_a_pruner_is_asked_for_continuations_only_after_something_happened(tmp_path: Path) -> None:
    runner, pruner = Fake(pace=50), Above(1.0)
    search(tmp_path / "s", runner, pruner=pruner, trials=1)
    assert runner.polls >= 50 * LENGTH
    assert pruner.calls <= LENGTH + 3


def test_a_continued_trial_with_other_values_begins_from_a_copy_of_the_checkpoint(tmp_path: Path) -> None:
    runner = Fake()
    search(tmp_path / "s", runner, pruner=Above(0.0), trials=1)
    runner = Fake()
    _, found, _ = search(
        tmp_path / "s", runner, pruner=Above(1.0, Continuation(0, {"optimizer.lr": 0.25})), trials=1, resume=True
    )
    assert (found[1].values, found[1].folder) == ({"optimizer.lr": 0.25}, "trials/0001")
    resume = runner.runs[0].resume
    assert resume is not None
    assert (resume.name, resume.parent.parent.name) == ("step-00000001", "0001.source")
    assert list(found[1].curve.values())[-1] == 0.25 / LENGTH


@pytest.mark.parametrize(
    ("code", "attempts"), [(ExitCode.FAILURE, 3), (137, 3), (ExitCode.DIVERGED, 1), (ExitCode.BAD_INPUT, 1)]
)
def test_a_failed_trial_is_a_row_with_its_reason_and_the_search_goes_on(
    tmp_path: Path, code: int, attempts: int
) -> None:
    runner = Fake(lambda run, evaluations: code if run.folder.name == "0001" else None)
    result, found, _ = search(tmp_path / "s", runner, retries=2)
    assert result == 0
    assert [r.state for r in found] == ["complete", "failed", *["complete"] * 4]
    assert found[1].reason == f"ended with {code}"
    assert sum(run.folder.name == "0001" for run in runner.runs) == attempts


def test_a_trial_that_lost_a_rank_once_is_complete(tmp_path: Path) -> None:
    lost: list[Path] = []

    def once(run: Run, evaluations: int) -> int | None:
        if run.folder.name == "0001" and not lost:
            lost.append(run.folder)
            return 1
        return None

    _, found, _ = search(tmp_path / "s", Fake(once))
    assert [r.state for r in found] == ["complete"] * 6
    assert len(found[1].spans) == 2


def test_a_search_whose_first_trials_fail_alike_ends(tmp_path: Path) -> None:
    runner = Fake(lambda run, evaluations: ExitCode.BAD_INPUT)
    code, found, one = search(tmp_path / "s", runner, trials=40, slots=1)
    assert (code, len(found)) == (ExitCode.FAILURE, 3)
    assert one.reason == "the first 3 trials failed alike"


def test_a_search_that_was_killed_goes_on_to_the_same_total(tmp_path: Path) -> None:
    """Each start but the first few is killed: no finished trial is lost, none runs twice."""
    whole = [r.values for r in search(tmp_path / "whole", Fake())[1]]
    ended: list[str] = []
    for attempt in range(20):
        runner = Fake(crashes_after=1 + attempt % 3)
        try:
            code, found, _ = search(tmp_path / "s", runner, resume=attempt > 0)
        except SystemExit:
            ended += [run.folder.name for run in runner.runs[: runner.crashes_after]]
            continue
        break
    assert code == 0
    assert [r.state for r in found] == ["complete"] * 6
    assert len(whole) == 6
    finished = [name for name in ended if (tmp_path / "s" / "trials" / name / "summary.json").exists()]
    assert all(len(r.curve) == LENGTH for r in found)
    assert len(finished) >= 6


def test_a_run_that_ended_just_before_the_search_was_killed_does_not_run_again(tmp_path: Path) -> None:
    killed = Fake(crashes_after=2)
    with pytest.raises(SystemExit):
        search(tmp_path / "s", killed, slots=1)
    folder = tmp_path / "s" / "trials" / "0002"
    shutil.copytree(tmp_path / "s" / "trials" / "0001", folder)
    runner = Fake()
    _, found, _ = search(tmp_path / "s", runner, resume=True)
    assert [r.state for r in found] == ["complete"] * 6
    assert folder not in [run.folder for run in runner.runs]


def test_a_signal_lets_the_runs_save_and_the_search_resumes(tmp_path: Path) -> None:
    def interrupt(run: Run, evaluations: int) -> int | None:
        if run.folder.name == "0002" and evaluations == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return None

    code, found, _ = search(tmp_path / "s", Fake(interrupt), slots=1)
    assert code == ExitCode.STOPPED
    assert [r.state for r in found] == ["complete", "complete", "running"]
    runner = Fake()
    code, found, _ = search(tmp_path / "s", runner, slots=1, resume=True)
    assert (code, [r.state for r in found]) == (0, ["complete"] * 6)
    assert runner.runs[0].resume == tmp_path / "s" / "trials" / "0002"


def test_the_value_of_folds_is_their_mean(tmp_path: Path) -> None:
    runner = Fake()
    _, found, _ = search(tmp_path / "s", runner, trials=2, folds=3)
    assert len(runner.runs) == 6
    lr = found[0].values["optimizer.lr"]
    assert found[0].objectives == (pytest.approx((lr + 1) / LENGTH),)
    assert found[0].folds == {str(k): [pytest.approx((lr + k) / LENGTH)] for k in range(3)}
    assert found[0].figures["loss_std"] == pytest.approx(1 / LENGTH)
    assert found[0].curve == {k: pytest.approx((lr + 1) / k) for k in range(1, LENGTH + 1)}


def test_a_trial_is_pruned_when_its_folds_so_far_are_bad(tmp_path: Path) -> None:
    """One slot: the folds run one after another. The mean of the first two is above the limit, that of one is not."""
    runner = Fake()
    _, found, _ = search(tmp_path / "s", runner, trials=1, folds=3, slots=1, pruner=Above(0.8))
    assert 0.3 < found[0].values["optimizer.lr"] < 0.8
    assert [run.folder.name for run in runner.runs] == ["fold-0", "fold-1"]
    assert (found[0].state, found[0].objectives) == ("pruned", ())


def test_the_search_ends_at_its_target(tmp_path: Path) -> None:
    code, found, one = search(tmp_path / "s", Fake(), trials=50, slots=1, target=0.1)
    assert code == 0
    assert found[-1].objectives[0] <= 0.1 < min(r.objectives[0] for r in found[:-1])
    assert one.reason == "loss 0.1 reached"


def test_the_search_ends_without_improvement(tmp_path: Path) -> None:
    _, found, one = search(tmp_path / "s", Fake(), trials=200, slots=1, patience=5)
    losses = [r.objectives[0] for r in found]
    assert len(losses) - 1 - losses.index(min(losses)) == 5
    assert one.reason == "5 trials without a better one"


def test_the_search_ends_when_its_time_or_its_slot_hours_are_used_up(tmp_path: Path) -> None:
    code, found, one = search(tmp_path / "hours", Fake(), slots=1, max_gpu_hours=1e-12)
    assert (code, [r.state for r in found], one.reason) == (0, ["complete"], "1e-12 hours of slots used up")
    code, found, one = search(tmp_path / "hours", Fake(), slots=1, max_gpu_hours=1e-12, resume=True)
    assert len(found) == 1
    code, found, one = search(tmp_path / "seconds", Fake(), max_seconds=1e-12)
    assert (code, found, one.reason) == (ExitCode.FAILURE, [], "1e-12 seconds used up")


def test_suggestions_that_the_constraints_refuse_are_no_trials(tmp_path: Path) -> None:
    space = Space((Dimension("optimizer.lr", Uniform(0.0, 1.0)),), ("optimizer.lr < 0.3",))
    _, found, _ = search(tmp_path / "s", Fake(), space=space)
    assert len(found) == 6
    assert all(r.values["optimizer.lr"] < 0.3 for r in found)


def test_constraints_that_refuse_everything_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "MOST_INFEASIBLE", 20)
    space = Space((Dimension("optimizer.lr", Uniform(0.5, 1.0)),), ("optimizer.lr < 0.3",))
    code, found, one = search(tmp_path / "s", Fake(), space=space)
    assert (code, found) == (ExitCode.FAILURE, [])
    assert one.reason == "the constraints refused 20 suggestions in a row"


def test_the_number_of_ranks_can_be_varied(tmp_path: Path) -> None:
    space = Space((Dimension("optimizer.lr", Uniform(0.0, 1.0)), Dimension("np", Choice((1, 2)))))
    runner = Fake()
    _, found, _ = search(tmp_path / "s", runner, space=space, trials=8, slots=2)
    assert [run.np for run in runner.runs] == [r.values["np"] for r in sorted(found, key=lambda r: r.spans[0][0])]
    assert {run.np for run in runner.runs} == {1, 2}
    assert not any("np=" in word for run in runner.runs for word in run.overrides)
