"""Find the rank or host that ended a job in what launchers print."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass

PATTERNS = (
    # Open MPI 4 and 5
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)"),
    re.compile(r"Process name: \[\S*,(?P<rank>\d+)\] Exit code: (?P<code>[1-9]\d*)"),
    # Hydra: MPICH and Intel MPI
    re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+).*?(?:KILLED BY SIGNAL: |\(signal )(?P<signal>\d+)"),
    # horovodrun --gloo
    re.compile(r"Process (?P<rank>\d+) exit with status code (?:-|(?=1[2-9]\d))(?P<signal>\d+)\b"),
    re.compile(r"Process (?P<rank>\d+) exit with status code (?P<code>[1-9]\d?)\b"),
    # srun
    re.compile(
        r"srun: error: (?P<host>\S+): tasks? (?P<rank>\d+)[\d,-]*: "
        r"(?:(?P<word>Killed|Segmentation fault|Aborted|Terminated)|Exited with exit code (?P<code>[1-9]\d*))"
    ),
)
LOST = {
    "srun": re.compile(r"srun: error: Node failure on (\S+)"),
    "mpirun": re.compile(
        r"lost communication with a remote daemon.*?Remote daemon: \[\S+\] on node (\S+)"
        r"|Connection to (\S+) closed by remote host"
    ),
}
"""Messages of a launcher, or of its ssh, about a lost host. horovodrun starts an mpirun."""
_SIGNALS = {"Killed": 9, "Segmentation fault": 11, "Aborted": 6, "Terminated": 15}


@dataclass(frozen=True)
class Death:
    """A rank that `signal` killed, or with signal 0 one that exited with `code`.

    `host` is empty if the launcher does not name it.
    """

    rank: int
    host: str
    signal: int
    code: int = 0

    def __str__(self) -> str:
        who = f"rank {self.rank}{f' on {self.host}' * bool(self.host)}"
        if not self.signal:
            return f"{who} exited with code {self.code} without reporting an error"
        name = signal.Signals(self.signal).name
        return f"{who} was killed by signal {self.signal} ({name}){_HINTS.get(self.signal, '')}"


_HINTS = {
    9: "; if nobody sent it, look for the kernel's out-of-memory killer (dmesg)",
    11: ": a crash in native code",
    6: ": native code aborted",
}


def killed(text: str, ranks: Mapping[int, int], host: str, excluded: Collection[int] = ()) -> Death | None:
    """Return the rank outside of `excluded` that died first, by the stderr `text` of a launcher.

    `ranks` maps processes on `host` to ranks. Deaths by SIGTERM come last, as launchers send it to
    the ranks that are left.
    """
    line = " ".join(text.split())
    found = []
    for pattern in PATTERNS:
        for match in pattern.finditer(line):
            death = _death(match.groupdict(), ranks, host)
            if death is not None and death.rank not in excluded:
                found.append((death.signal == signal.SIGTERM, match.start(), death))
    return min(found, key=lambda one: one[:2])[2] if found else None


def _death(found: Mapping[str, str | None], ranks: Mapping[int, int], host: str) -> Death | None:
    number = _SIGNALS.get(found.get("word") or "", 0) or _signal(found.get("signal"))
    code = int(found.get("code") or 0)
    rank = int(found["rank"] or 0) if "rank" in found else ranks.get(int(found.get("pid") or 0))
    if rank is None or not (number or code):
        return None
    here = "" if code and "host" not in found else host
    return Death(rank, found.get("host") or here, number, code)


def lost(text: str, launcher: str) -> list[str]:
    """Return the hosts that `launcher` reports as lost in its stderr `text`."""
    pattern = LOST.get(launcher, LOST["mpirun"])
    return [next(filter(None, match.groups())) for match in pattern.finditer(" ".join(text.split()))]


def _signal(text: str | None) -> int:
    """Return the number of a signal, or 0 if `text` is none.

    Shells and launchers may add 128 to it.
    """
    number = int(text or 0)
    number = number - 128 if number > 128 else number
    return number if number in {s.value for s in signal.Signals} else 0
