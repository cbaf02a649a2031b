"""How a job ended: a pure function of the evidence."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cli.follow.blame import killed
from cli.follow.exits import EarlyExit
from cli.follow.state import JobState, listed
from hvd_train.errors import ExitCode
from hvd_train.rank import events


@dataclass(frozen=True)
class LauncherEnd:
    """How the launcher `name` ended: its exit code, and the end of its stderr without events."""

    name: str
    code: int
    text: str = ""


@dataclass(frozen=True)
class Intervention:
    """What this command did to the job.

    `signals` arrived at the command, oldest first. `timeout` is the time limit in seconds if the
    command enforced it. `stall` describes the stall that it ended.
    """

    signals: Sequence[int] = ()
    timeout: float | None = None
    stall: str | None = None

    @property
    def interrupted(self) -> bool:
        """True if the job was told to end, so that deaths of ranks are no failures."""
        return bool(self.signals) or self.timeout is not None


@dataclass(frozen=True)
class LocalRanks:
    """The ranks by pid on this machine, named `host`, that have not reported their end."""

    host: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that is known of a job whose launcher has ended.

    `exit` is the process that ended first before the job did. With `min_ranks`, that many ranks
    must succeed (Horovod elastic).
    """

    state: JobState
    launcher: LauncherEnd
    events: Sequence[Mapping[str, Any]] = ()
    exit: EarlyExit | None = None
    intervention: Intervention = field(default_factory=Intervention)
    min_ranks: int | None = None
    local: LocalRanks = field(default_factory=LocalRanks)

    def of(self, *kinds: str) -> list[Mapping[str, Any]]:
        """Return the events of these kinds, oldest first."""
        return [event for event in self.events if event["event"] in kinds]

    @property
    def interrupted(self) -> bool:
        return self.intervention.interrupted

    @property
    def failures(self) -> list[Mapping[str, Any]]:
        """The failures of ranks, without a KeyboardInterrupt that this command caused."""
        asked = signal.SIGINT in self.intervention.signals
        return [e for e in self.of("failed") if not (asked and e["message"].startswith("KeyboardInterrupt"))]

    @property
    def own_failure(self) -> Mapping[str, Any] | None:
        """The first failure of a rank that is no consequence of the loss of another rank."""
        return events.first_failure(e for e in self.failures if not is_consequence(e))


@dataclass(frozen=True)
class Verdict:
    """The exit code of the command and its message.

    `unexplained` is True if only the stderr of the launcher may tell more.
    """

    code: int
    text: str = ""
    unexplained: bool = False


def verdict(found: Evidence) -> Verdict:
    """Return how the job ended.

    A job succeeds if every rank reports success: exit code 0 of a launcher proves nothing.
    """
    done = found.of("done")
    succeeded = {(e["machine"], e["pid"]) for e in done if e["exit_code"] == 0}
    if found.min_ranks is not None and found.launcher.code == 0 and len(succeeded) >= found.min_ranks:
        return Verdict(ExitCode.OK)
    for explain in (_refused, _stalled, _lost_host, _missed, _died, _reported):
        explained = explain(found)
        if explained is not None:
            return explained
    codes, ranks = {e["exit_code"] for e in done}, {e["rank"] for e in done}
    if len(ranks | found.state.lost) == found.state.world_size and len(codes) == 1:
        return Verdict(int(codes.pop()))
    return _ended_early(found, ranks)


def is_consequence(failure: Mapping[str, Any]) -> bool:
    """Return True if a rank failed because it lost another rank, by its own report."""
    return failure.get("lost") is not None or bool(_PEER.match(failure["message"]))


_PEER = re.compile(
    r"HorovodInternalError\b|(?:Connection|BrokenPipe)\w*Error\b|Exception: MPI_ERR_|DistBackendError\b"
    r"|RuntimeError: .*(?:[Cc]onnection (?:closed|reset|refused)|[Bb]roken pipe)",
    re.DOTALL,
)
"""Exceptions of Horovod, MPI and torch.distributed in a rank that has lost a peer."""


def _refused(found: Evidence) -> Verdict | None:
    event = next(iter(found.of("refused")), None)
    return None if event is None else Verdict(event["exit_code"], event["message"])


def _stalled(found: Evidence) -> Verdict | None:
    stall = found.intervention.stall
    return None if stall is None else Verdict(ExitCode.FAILURE, stall)


def _lost_host(found: Evidence) -> Verdict | None:
    """Blame a host or daemon that is gone: failures of other ranks are its consequences."""
    gone = found.exit
    return None if found.interrupted or gone is None or gone.rank else _blame(found, gone)


def _missed(found: Evidence) -> Verdict | None:
    """Blame a rank that other ranks report as lost and that has reported no failure itself."""
    failed = found.failures
    first = next((e for e in failed if e.get("lost") not in {None, *(f["rank"] for f in failed)}), None)
    if first is None or found.interrupted:
        return None
    rank = found.state.ranks.get(first["lost"])
    last = found.state.describe([rank] if rank else [])
    return Verdict(ExitCode.FAILURE, f"the first failure: {first['message']}\n{last}".rstrip())


def _died(found: Evidence) -> Verdict | None:
    """Blame a rank that died, unless a rank had failed before: launchers then kill the others."""
    if found.interrupted:
        return None
    reported = {e["rank"] for e in found.of("failed", "done")}
    gone = found.exit if found.exit and found.exit.rank and found.exit.rank.number not in reported else None
    first = found.own_failure
    if first and not (gone and gone.wall < first["time"]):
        return None
    death = killed(found.launcher.text, found.local.ranks, found.local.host, reported | found.state.lost)
    if death is not None:
        rank = found.state.ranks.get(death.rank)
        death = replace(death, host=death.host or (rank.host if rank else ""))
        return Verdict(ExitCode.FAILURE, f"the first failure: {death}")
    return _blame(found, gone) if gone else None


def _reported(found: Evidence) -> Verdict | None:
    """Blame the rank whose failure came first."""
    event = found.own_failure or events.first_failure(found.failures)
    if event is None:
        return None
    rank = found.state.ranks.get(event["rank"])
    who = str(rank) if rank else f"{'a rank' if event['rank'] < 0 else 'rank ' + str(event['rank'])} on {event['host']}"
    if event["exit_code"] == ExitCode.BAD_INPUT:
        where = f" ({who})" if found.state.world_size > 1 else ""
        return Verdict(ExitCode.BAD_INPUT, f"{event['message']}{where}")
    trace = event["traceback"].rstrip() or event["message"]
    return Verdict(event["exit_code"], f"the first failure: {who}:\n{trace}")


def _ended_early(found: Evidence, done: set[int]) -> Verdict:
    """Describe a job in which ranks are missing and none has failed."""
    stop = found.intervention
    if stop.timeout is not None:
        return Verdict(ExitCode.TIMEOUT, f"ended after --timeout {stop.timeout:g} seconds")
    if stop.signals:
        last = stop.signals[-1]
        return Verdict(128 + last, f"ended by {signal.Signals(last).name}")
    missing = listed(set(range(found.state.world_size)) - done - found.state.lost)
    how = (
        f"{found.launcher.name} ended with code {found.launcher.code}, and {missing} did not report the end of the run"
    )
    return Verdict(ExitCode.FAILURE, f"{how}\n{found.state.describe()}".rstrip(), unexplained=True)


def _blame(found: Evidence, gone: EarlyExit) -> Verdict:
    return Verdict(ExitCode.FAILURE, f"the first failure: {gone}\n{found.state.describe(gone.ranks)}")
