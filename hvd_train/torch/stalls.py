"""Detection of stalls: requests that some ranks have made long ago and other ranks have not."""

from __future__ import annotations

from hvd_train.torch.requests import Key, Spec
from hvd_train.torch.settings import Settings


class StallMonitor:
    """Tracks how long requests have been incomplete, and reports each stall once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._since: dict[Key, float] = {}
        self._reported: set[Key] = set()
        self._conflicts: set[Spec] = set()

    def check(self, waiting: list[tuple[Key, list[int]]], now: float) -> tuple[list[str], str]:
        """Return new warnings and the reason to shut down, empty if there is none.

        `waiting` lists incomplete requests with their missing ranks. `now` is in seconds.
        """
        self._since = {key: self._since.get(key, now) for key, _ in waiting}
        self._reported &= self._since.keys()
        warn, end = self._settings.stall_warning, self._settings.stall_shutdown
        ages = [(key, ranks, now - self._since[key]) for key, ranks in waiting]
        new = [item for item in ages if warn and item[2] >= warn and item[0] not in self._reported]
        self._reported.update(key for key, _, _ in new)
        fatal = next((item for item in ages if warn and end and item[2] >= end), None)
        return [_message(*item) for item in new], _message(*fatal) if fatal else ""

    def lasting(self, conflicts: list[Spec]) -> list[Spec]:
        """Return the conflicts that the previous call also had."""
        before, self._conflicts = self._conflicts, set(conflicts)
        return [spec for spec in conflicts if spec in before]


def _message(key: Key, missing: list[int], seconds: float) -> str:
    ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    return f"stalled for {seconds:.0f} s: {key} waits for {ranks}"
