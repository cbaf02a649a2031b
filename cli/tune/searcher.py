"""The loop of a search: it starts trials on free slots, follows their metrics, and records how they end."""

from __future__ import annotations

import copy
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cli.search import records
from cli.search.pruner import Pruner
from cli.search.records import Record
from cli.tune import gate
from cli.tune.linking import linked
from cli.tune.plan import Plan
from cli.tune.runner import Run, Runner
from cli.tune.show.live import Live
from cli.tune.slots import Slots
from cli.tune.study import TRIALS, Journal
from cli.tune.trial import Part, Trial, parts
from hvd_train.errors import ExitCode, UserError
from hvd_train.state.checkpoint_folder import CHECKPOINTS, folders

if TYPE_CHECKING:
    import optuna

POLL = 0.02
"""Seconds between two looks at the running trials."""
AHEAD = 8
"""Trials that may wait for slots while smaller ones overtake them."""
GRACE = 60.0
"""Seconds in which a run that was asked to stop has to save and end."""
ALIKE = 3
"""The search ends if its first trials, so many, fail for the same reason."""
MOST_INFEASIBLE = 1000
"""Suggestions in a row that the constraints may refuse."""
_FINAL = {ExitCode.BAD_INPUT, ExitCode.DIVERGED}
"""Exit codes that another attempt would have too."""


@dataclass
class Searcher:
    """Searches in `folder` until the plan's total of trials has ended.

    `pruner` is None if trials never end early. `parallel` limits the runs at a time.
    """

    plan: Plan
    folder: Path
    journal: Journal
    pruner: Pruner | None
    runner: Runner
    slots: Slots
    parallel: int
    live: Live
    trials: list[Trial] = field(default_factory=list)
    """Trials that run or wait for slots, in the order of their numbers."""
    reason: str | None = None
    """Why the search ended before its total."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._signalled = False
        self._has_news = True
        """False if nothing has happened since no trial could be added."""
        self._since_best = 0
        self._failures: list[str] = []
        """Reasons of the trials that failed before any trial was complete."""
        self._best: float | None = None
        found = records.records(self.journal.study)
        self._counted = sum(record.continues is None for record in found)
        self._slot_seconds = sum((end - start) * len(slots) for r in found for start, end, slots in r.spans)
        self._queued = sum(record.state == "waiting" for record in found)
        """Continuations that an earlier search decided, and did not start."""
        for record in found:
            self._note_end(record)
            self.live.changed(record)
            if record.state == "running":
                self._take_up(record)
        if self.reason is not None:
            self._finish(self.reason)

    def run(self) -> int:
        """Search, and return the exit code.

        A signal asks the running trials to save. `ddl tune --resume` then goes on with them.
        """
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        previous = {number: signal.signal(number, self._receive) for number in signals}
        try:
            while self._goes_on():
                self.live.update(self.slots.count - self.slots.free, self.slots.count)
                time.sleep(POLL)
        finally:
            self.runner.close()
            self.live.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signalled:
            return ExitCode.STOPPED
        return ExitCode.OK if self._best is not None else ExitCode.FAILURE

    def _goes_on(self) -> bool:
        self._follow()
        if not self._signalled:
            self._fill()
            return bool(self.trials)
        if self.runner.outlives:
            return False
        for trial in self.trials:
            trial.stop()
        return any(trial.running for trial in self.trials)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True

    # What runs

    def _follow(self) -> None:
        """Read what the runs have written, answer their gates, and record those that ended."""
        for trial in list(self.trials):
            for part in trial.running:
                assert part.running is not None
                code = part.running.poll()
                self._read(trial, part)
                if code is not None:
                    self._end_part(trial, part, code)
                elif part.asked is not None and time.monotonic() - part.asked > GRACE:
                    part.running.kill()
            if not (trial.running or trial.waiting):
                self._end(trial)

    def _read(self, trial: Trial, part: Part) -> None:
        """Report the new evaluations of `part`, and let it go on or stop."""
        for number, row in part.evaluations.new():
            value = trial.value_at(number, self.plan.objectives[0])
            if value is not None:
                self.journal.report(trial.number, number, value)
                self._has_news = True
                self.live.changed(self.journal.record(trial.number))
            if self.pruner is None:
                continue
            if value is not None and number > part.decided:
                part.decided = number
                if not trial.pruned and self._stops(trial, number):
                    trial.pruned = True
                    trial.stop()
            gate.answer(part.folder, row["step"], stop=part.asked is not None)

    def _stops(self, trial: Trial, number: int) -> bool:
        """Ask the pruner about the evaluation `number`. Other folds may have come further."""
        assert self.pruner is not None
        frozen = copy.copy(self.journal.trial(trial.number))
        known = frozen.intermediate_values
        frozen.intermediate_values = {step: value for step, value in known.items() if step <= number}
        return self.pruner.stops(self.journal.study, frozen)

    def _end_part(self, trial: Trial, part: Part, code: int) -> None:
        """Record the end of a run, and whether it has to run again."""
        assert part.running is not None
        message, part.running = part.running.message() if code else "", None
        self._add_span(trial, part)
        self.slots.give(part.slots)
        if code == ExitCode.OK or (code == ExitCode.STOPPED and (trial.pruned or trial.failure)):
            part.ended = True
        elif self._signalled:
            return
        elif code not in _FINAL and part.attempts <= self.plan.search.retries:
            self.live.say(f"trial {trial.number}, attempt {part.attempts}: {message}")
        else:
            part.ended, trial.failure = True, message
            trial.stop()

    def _add_span(self, trial: Trial, part: Part) -> None:
        now = time.time()
        spans = self.journal.trial(trial.number).user_attrs.get(records.SPANS, [])
        self.journal.note(trial.number, records.SPANS, [*spans, [part.began, now, list(map(str, part.slots))]])
        self._slot_seconds += (now - part.began) * len(part.slots)

    def _end(self, trial: Trial) -> None:
        """Tell the study how `trial` ended."""
        from optuna.trial import TrialState

        self.trials.remove(trial)
        self._has_news = True
        values: list[float] | None = None
        state = TrialState.PRUNED if trial.pruned else TrialState.FAIL
        if not trial.pruned and trial.failure is None:
            try:
                values, figures, folds = trial.outcome(self.plan.objectives)
                self.journal.note(trial.number, records.FIGURES, figures)
                self.journal.note(trial.number, records.FOLDS, folds)
                state = TrialState.COMPLETE
            except UserError as error:
                trial.failure = str(error)
        if trial.failure is not None:
            self.journal.note(trial.number, records.REASON, trial.failure)
        self.journal.study.tell(trial.number, values, state=state, skip_if_finished=True)
        record = self.journal.record(trial.number)
        self._note_end(record)
        self.live.changed(record)

    def _note_end(self, record: Record) -> None:
        """Compare a trial that ended with the best one, and end the search if that was asked for."""
        if record.state not in ("complete", "pruned", "failed"):
            return
        search, objective = self.plan.search, self.plan.objectives[0]
        if record.reason is not None and self._best is None:
            self._failures.append(record.reason)
            if self._failures == [record.reason] * ALIKE:
                self._finish(f"the first {ALIKE} trials failed alike")
        if record.objectives and (self._best is None or objective.is_better(record.objectives[0], self._best)):
            self._best, self._since_best = record.objectives[0], 0
        else:
            self._since_best += 1
        if search.target is not None and self._best is not None and not objective.is_better(search.target, self._best):
            self._finish(f"{objective.title} {search.target:g} reached")
        elif search.patience is not None and self._since_best >= search.patience:
            self._finish(f"{search.patience} trials without a better one")

    def _finish(self, reason: str) -> None:
        """Start nothing more, and end what runs as pruned."""
        self.reason = reason
        for trial in self.trials:
            trial.pruned = True
            trial.stop()

    # What starts

    def _take_up(self, record: Record) -> None:
        """Go on with a trial of an earlier search, whose runs may have gone on without it."""
        trial = self._admitted(self.journal.adopt(record.number))
        if trial is None:
            self._counted -= record.continues is None
            return
        self.trials.append(trial)
        for part in trial.waiting:
            part.running = self.runner.attach(part.folder)
            if part.running is not None:
                part.slots, part.began, part.attempts = self.slots.take(trial.np), time.time(), 1

    def _fill(self) -> None:
        """Start runs while slots are free."""
        while not self._signalled and self._running < self.parallel and self.slots.free:
            if not self._start_waiting() and not self._add_trial():
                break

    @property
    def _running(self) -> int:
        return sum(len(trial.running) for trial in self.trials)

    def _start_waiting(self) -> bool:
        """Start the first waiting run for which enough slots are free; return False if there is none."""
        waiting = [(trial, part) for trial in self.trials for part in trial.waiting]
        found = self.slots.take_first([trial.np for trial, _ in waiting])
        if found is None:
            return False
        trial, part = waiting[found[0]]
        part.slots = found[1]
        self._start(trial, part)
        return True

    def _start(self, trial: Trial, part: Part) -> None:
        gate.clear(part.folder)
        part.attempts, part.began, part.asked = part.attempts + 1, time.time(), None
        run = Run(
            file=self.plan.file,
            overrides=self.plan.words(trial.values, part.fold),
            np=trial.np,
            folder=part.folder,
            placement=self.slots.placement(part.slots),
            resume=part.source(),
            gated=self.pruner is not None,
        )
        part.running = self.runner.start(run)
        self.live.changed(self.journal.record(trial.number))

    def _add_trial(self) -> bool:
        """Ask for the next trial; return False if none may start now."""
        if not self._has_news or sum(bool(trial.waiting) for trial in self.trials) >= AHEAD or self._is_over():
            return False
        study = self.journal.study
        continued = self.pruner.continuation(study, self.plan.space) if self.pruner is not None else None
        if continued is not None:
            study.enqueue_trial(continued.params, user_attrs={records.CONTINUES: continued.source})
        elif not self._queued and self._counted >= self.plan.trials:
            self._has_news = False
            return False
        self._queued = max(0, self._queued - 1)
        trial = self._ask()
        if trial is not None:
            self.trials.append(trial)
        return trial is not None

    def _is_over(self) -> bool:
        search = self.plan.search
        if search.max_seconds is not None and time.monotonic() - self._began >= search.max_seconds:
            self.reason = f"{search.max_seconds:g} seconds used up"
        if search.max_gpu_hours is not None and self._slot_seconds >= search.max_gpu_hours * 3600:
            self.reason = f"{search.max_gpu_hours:g} hours of slots used up"
        return self.reason is not None

    def _ask(self) -> Trial | None:
        """Return the next trial that the constraints admit; None if they refuse too many."""
        for _ in range(MOST_INFEASIBLE):
            asked = self.journal.study.ask()
            trial = self._admitted(asked)
            if trial is not None:
                self._counted += records.CONTINUES not in asked.user_attrs
                return trial
        self.reason = f"the constraints refused {MOST_INFEASIBLE} suggestions in a row"
        return None

    def _admitted(self, asked: optuna.Trial) -> Trial | None:
        """Return the trial to run, None if the constraints refuse its values: it is no trial then."""
        from optuna.trial import TrialState

        values = self.plan.space.suggest(asked)
        if self.plan.space.admits(values):
            return self._made(asked, values)
        asked.set_user_attr(records.INFEASIBLE, True)
        self.journal.study.tell(asked, state=TrialState.FAIL)
        return None

    def _made(self, asked: optuna.Trial, values: dict[str, Any]) -> Trial:
        """Return the trial to run, which an earlier search may have begun."""
        number = asked.number
        folder, sources = self.folder / TRIALS / f"{number:04}", list[Path | None]()
        if records.CONTINUES in asked.user_attrs:
            source = self.journal.record(asked.user_attrs[records.CONTINUES])
            others = parts(self.folder / source.folder, self.plan.folds)
            if values == source.values:
                folder = self.folder / source.folder
            else:
                sources = [_copied(part.folder, folder.with_name(f"{number:04}.source")) for part in others]
        self.journal.note(number, records.VALUES, values)
        self.journal.note(number, records.FOLDER, os.path.relpath(folder, self.folder))
        trial = Trial(number, values, self.plan.ranks(values), parts(folder, self.plan.folds, sources))
        for part in trial.parts:
            part.ended = part.is_complete()
        return trial


def _copied(folder: Path, target: Path) -> Path | None:
    """Link the newest checkpoint of the run in `folder` below `target`: a run that goes on replaces its own."""
    copies = target / folder.name
    saved = folders(folder / CHECKPOINTS)
    if saved and not folders(copies):
        linked(saved[0], copies / saved[0].name)
    return next(iter(folders(copies)), None)
