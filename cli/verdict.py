"""How a job ended, from all that was heard of it: a function of data."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cli.blame import killed
from cli.watchdog import Gone, Watchdog
from hvd_train import events
from hvd_train.errors import ExitCode


@dataclass(frozen=True)
class Evidence:
    """What is known of a job whose launcher has ended.

    `code` and `words` are the launcher's exit code and its last words, `signals` came to the command, oldest first, and `gone` is
    the process that ended first before the job did. `stall` is why the command ended a job that stood still. With `fewest`, so
    many ranks have to reach the end (Horovod elastic).
    """

    world_size: int
    launcher: str
    code: int
    watchdog: Watchdog
    events: Sequence[Mapping[str, Any]] = ()
    words: str = ""
    signals: Sequence[int] = ()
    gone: Gone | None = None
    stall: str | None = None
    timeout: float | None = None
    """The seconds after which the command ended the job, if it did."""
    fewest: int | None = None
    local: Mapping[int, int] = field(default_factory=dict)
    """Rank by process number, of ranks on this machine that did not report their end."""
    host: str = ""
    """The name of this machine."""

    def of(self, *kinds: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] in kinds]

    @property
    def interrupted(self) -> bool:
        """Whether somebody told the job to end, so that deaths are no failures."""
        return bool(self.signals) or self.timeout is not None

    @property
    def failures(self) -> list[Mapping[str, Any]]:
        """Without the KeyboardInterrupt of ranks that SIGINT was passed on to."""
        asked = signal.SIGINT in self.signals
        return [e for e in self.of("failed") if not (asked and e["message"].startswith("KeyboardInterrupt"))]

    @property
    def own_failure(self) -> Mapping[str, Any] | None:
        """The first failure of a rank that is no consequence of the loss of another one."""
        return events.first_failure(e for e in self.failures if not is_consequence(e))


@dataclass(frozen=True)
class Verdict:
    """The exit code for the shell, and what is said of it; `unexplained` where only the launcher's own words may tell more."""

    code: int
    text: str = ""
    unexplained: bool = False


def verdict(found: Evidence) -> Verdict:
    """Success is a word from every rank: exit code 0 of a launcher proves nothing."""
    done = found.of("done")
    ended_well = {(e["machine"], e["pid"]) for e in done if e["exit_code"] == 0}
    if found.fewest is not None and found.code == 0 and len(ended_well) >= found.fewest:
        return Verdict(ExitCode.OK)
    for explain in (_refused, _stalled, _lost_host, _missed, _died, _reported):
        explained = explain(found)
        if explained is not None:
            return explained
    codes, ranks = {e["exit_code"] for e in done}, {e["rank"] for e in done}
    if len(ranks | found.watchdog.lost) == found.world_size and len(codes) == 1:
        return Verdict(int(codes.pop()))
    return _ended_early(found, ranks)


def is_consequence(failure: Mapping[str, Any]) -> bool:
    """Whether a rank failed because it lost another one, by what it says."""
    return failure.get("lost") is not None or bool(_PEER.match(failure["message"]))


_PEER = re.compile(
    r"HorovodInternalError\b|(?:Connection|BrokenPipe)\w*Error\b|Exception: MPI_ERR_|DistBackendError\b"
    r"|RuntimeError: .*(?:[Cc]onnection (?:closed|reset|refused)|[Bb]roken pipe)",
    re.DOTALL,
)
"""What ranks of Horovod, MPI and torch.distributed raise when a peer is gone."""


def _refused(found: Evidence) -> Verdict | None:
    event = next(iter(found.of("refused")), None)
    return None if event is None else Verdict(event["exit_code"], event["message"])


def _stalled(found: Evidence) -> Verdict | None:
    return None if found.stall is None else Verdict(ExitCode.FAILURE, found.stall)


def _lost_host(found: Evidence) -> Verdict | None:
    """A host or daemon that is gone takes its ranks with it, and what the others say of that is a consequence."""
    gone = found.gone
    return None if found.interrupted or gone is None or gone.rank else _accuse(found, gone)


def _missed(found: Evidence) -> Verdict | None:
    """A rank that has not failed by its own account, and of which others say that they cannot go on without it."""
    failed = found.failures
    first = next((e for e in failed if e.get("lost") not in {None, *(f["rank"] for f in failed)}), None)
    if first is None or found.interrupted:
        return None
    rank = found.watchdog.ranks.get(first["lost"])
    last = found.watchdog.accuse([rank] if rank else [])
    return Verdict(ExitCode.FAILURE, f"the first failure: {first['message']}\n{last}".rstrip())


def _died(found: Evidence) -> Verdict | None:
    """A rank that a signal killed, unless another one had failed by itself before: launchers kill the rest then."""
    if found.interrupted:
        return None
    reported = {e["rank"] for e in found.of("failed", "done")}
    gone = found.gone if found.gone and found.gone.rank and found.gone.rank.number not in reported else None
    first = found.own_failure
    if first and not (gone and gone.wall < first["time"]):
        return None
    death = killed(found.words, found.local, found.host, reported | found.watchdog.lost)
    if death is not None:
        rank = found.watchdog.ranks.get(death.rank)
        death = replace(death, host=death.host or (rank.host if rank else ""))
        return Verdict(ExitCode.FAILURE, f"the first failure: {death}")
    return _accuse(found, gone) if gone else None


def _reported(found: Evidence) -> Verdict | None:
    event = found.own_failure or events.first_failure(found.failures)
    if event is None:
        return None
    rank = found.watchdog.ranks.get(event["rank"])
    who = str(rank) if rank else f"{'a rank' if event['rank'] < 0 else 'rank ' + str(event['rank'])} on {event['host']}"
    if event["exit_code"] == ExitCode.BAD_INPUT:
        where = f" ({who})" if found.world_size > 1 else ""
        return Verdict(ExitCode.BAD_INPUT, f"{event['message']}{where}")
    trace = event["traceback"].rstrip() or event["message"]
    return Verdict(event["exit_code"], f"the first failure: {who}:\n{trace}")


def _ended_early(found: Evidence, done: set[int]) -> Verdict:
    if found.timeout is not None:
        return Verdict(ExitCode.TIMEOUT, f"ended after --timeout {found.timeout:g} seconds")
    if found.signals:
        last = found.signals[-1]
        return Verdict(128 + last, f"ended by {signal.Signals(last).name}")
    missing = sorted(set(range(found.world_size)) - done - found.watchdog.lost)
    who = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    how = f"{found.launcher} ended with code {found.code}, and {who} did not report the end of the run"
    return Verdict(ExitCode.FAILURE, f"{how}\n{found.watchdog.accuse([])}".rstrip(), unexplained=True)


def _accuse(found: Evidence, gone: Gone) -> Verdict:
    return Verdict(ExitCode.FAILURE, f"the first failure: {gone}\n{found.watchdog.accuse(gone.ranks)}")
