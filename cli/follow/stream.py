"""Read the output of a launcher: remove rank tags, extract events, keep the end of stderr."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from cli.follow.display import BackgroundWriter, Display
from cli.follow.poller import Poller, Receiver
from cli.follow.process import LauncherProcess
from hvd_train.rank import events

TAIL = 2**18
"""Bytes at the end of a launcher's stderr that are kept to explain how it ended."""

HARMLESS = (
    rb"plm:ssh: Warning: setpgid\(",  # PRRTE: the child was quicker than its parent
    rb"Warning: Permanently added '[^']*' \([\w-]+\) to the list of known hosts",  # ssh
)
"""Lines of launchers that report no problem."""

_HARMLESS = re.compile(rb"^[^\n]*(?:" + rb"|".join(HARMLESS) + rb")[^\n]*\n", re.MULTILINE)
_TAG = re.compile(rb"\n\[\d+(?:,\d+)?\]<std(?:out|err)>: ?")
_TAG_BEGINNING = re.compile(rb"\n\[[\d,]*(?:\](?:<[a-z]*(?:>:?)?)?)?\Z")


class Streams:
    """Reads stdout and stderr of a launcher; pauses while the sink of a stream is full.

    `sources` maps each stream to the sink that shows it and to its receiver. The pause blocks the
    ranks, as a full pipe does, and leaves this command free to act.
    """

    def __init__(self, poller: Poller, sources: Mapping[IO[bytes], tuple[BackgroundWriter, Receiver]]) -> None:
        self._poller = poller
        self._open = dict(sources)

    @property
    def open(self) -> bool:
        """True until all streams have ended."""
        return bool(self._open)

    @property
    def paused(self) -> bool:
        return any(sink.full for sink, _ in self._open.values())

    def read(self, seconds: float) -> bool:
        """Wait at most `seconds` and receive what the poller delivers.

        Return True if the launcher wrote something.
        """
        for source, (sink, _) in self._open.items():
            if sink.full:
                self._poller.pause(source)
            else:
                self._poller.add(source, partial(self._receive, source))
        before = {*self._open}
        ready = self._poller.poll(min(seconds, 0.02) if self.paused else seconds)
        return any(source in before for source in ready)

    def finish(self) -> None:
        """Flush what receivers hold back as the beginning of an event or a tag."""
        for _, receive in self._open.values():
            receive(b"")

    def _receive(self, source: IO[bytes], data: bytes) -> None:
        _, receive = self._open[source] if data else self._open.pop(source)
        receive(data)


def open_streams(
    poller: Poller, launcher: LauncherProcess, display: Display, errors: Receiver, *, tagged: bool
) -> Streams:
    """Return the streams of `launcher`. `errors` receives stderr; `tagged` is as in `Command`."""
    wrap = untagged if tagged else lambda receive: receive
    return Streams(
        poller,
        {launcher.stdout: (display.out, wrap(display.show)), launcher.stderr: (display.err, wrap(errors))},
    )


def untagged(receive: Receiver) -> Receiver:
    """Return a receiver that removes the tags of horovodrun and passes the rest to `receive`."""
    tags = Untagged()

    def feed(data: bytes) -> None:
        text = tags.feed(data)
        if text:
            receive(text)
        if not data:
            receive(b"")

    return feed


@dataclass
class Untagged:
    """Removes the tag of horovodrun from each line, wherever the stream is cut into pieces."""

    _rest: bytes = field(default=b"", init=False)
    _at_line_start: bool = field(default=True, init=False)

    def feed(self, data: bytes) -> bytes:
        """Return the text without tags.

        What may be the beginning of a tag is kept for the next call. Without `data`, it is returned
        unchanged.
        """
        lead = b"\n" if self._at_line_start else b""
        whole = lead + self._rest + data
        beginning = _TAG_BEGINNING.search(whole) if data else None
        end = beginning.start() + 1 if beginning else len(whole)
        text = _TAG.sub(b"\n", whole[:end])
        self._rest = whole[end:]
        self._at_line_start = text.endswith(b"\n") if text else self._at_line_start
        return text[len(lead) :]


@dataclass
class ErrorStream:
    """Separates events of ranks from text in the stderr of a launcher.

    The last `TAIL` bytes of the text are kept.
    """

    tail: bytearray = field(default_factory=bytearray, init=False)
    _pending: bytes = field(default=b"", init=False)

    def end(self, size: int = TAIL) -> str:
        """Return the last `size` bytes of text."""
        return self.tail[-size:].decode(errors="replace")

    def feed(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """Return the events and the text in `data`.

        Without `data`, an event that is incomplete becomes text.
        """
        found, text, pending = events.split(self._pending + (data or b"\n"))
        if not data:
            text, pending = (text + pending).removesuffix(b"\n"), b""
        self._pending = pending
        text = _HARMLESS.sub(b"", text)
        self.tail += text
        del self.tail[:-TAIL]
        return found, text
