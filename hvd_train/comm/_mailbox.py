"""Messages between single ranks, over TCP connections of their own: nobody waits, and a rank that dies is a message too.

MPI's own messages would do for the bytes. But its blocking receive looks for messages without a pause, which takes a core from
whoever computes, and a rank that has died is noticed by none of its calls.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import torch
from torch import Tensor

LOST = "lost"
_BYE = "bye"
_PREFIX = struct.Struct("!II")
"""Lengths of a message's text, and of the tensors after it in units of 8 bytes."""
_TEXT = 64 << 20
"""Bytes of the longest text of a message."""
_SECONDS = 30.0
_CHUNK = 1 << 20
_DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
Pieces = deque[memoryview]


@dataclass(frozen=True)
class Message:
    """What one rank sent another: a kind, some values that JSON can carry, and tensors on the host."""

    source: int
    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)


class Mailbox:
    """One rank's messages. They arrive in the order in which a rank sent them; those of several ranks as they come.

    A rank that goes without closing its mailbox is announced by a message of kind LOST, after its last one; what is sent to
    it from then on is dropped. Where the mailbox itself fails, as after bytes that are no message, `send` and `receive` raise
    ConnectionError from then on.
    """

    _counting: ClassVar = threading.Lock()
    """Mailboxes of one communicator, and threads that use them, add to the same number."""

    def __init__(self, rank: int, connections: dict[int, socket.socket], count: Callable[[float], None]) -> None:
        self.rank = rank
        self._count = count
        self._arrived: SimpleQueue[Message | None] = SimpleQueue()
        """None: nothing comes any more, for `_error`."""
        self._error: Exception | None = None
        self._peers = {peer: _Peer(peer, connection) for peer, connection in connections.items()}
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for peer in self._peers.values():
            peer.connection.setblocking(False)
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ddl-mail", daemon=True)
        self._thread.start()

    def send(self, dst: int, kind: str, *tensors: Tensor, **values: Any) -> None:
        """Send to rank `dst`, this one included, and return at once; the tensors are the caller's again."""
        self._check()
        if dst == self.rank:
            self._arrived.put(Message(dst, kind, values, [t.detach().cpu().clone() for t in tensors]))
            return
        pieces = _encoded(kind, values, tensors)
        with self._counting:
            self._count(sum(map(len, pieces)))
        if self._peers[dst].send(pieces):
            self._wake()

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, whoever it is from; None where none came in `timeout` seconds."""
        try:
            message = self._arrived.get(timeout=timeout)
        except Empty:
            return None
        if message is None:
            self._arrived.put(None)
            self._check()
        return message

    def close(self) -> None:
        """Say goodbye and leave, once all that was sent is on its way; the last call."""
        for peer in self._peers.values():
            peer.send(_encoded(_BYE, {}, ()))
        self.hang_up()

    def hang_up(self) -> None:
        """Leave without a goodbye, as a rank does that dies, once what was sent is on its way."""
        self._closing = True
        self._wake()
        self._thread.join(_SECONDS)
        self._waker.close()
        self._woken.close()

    def _check(self) -> None:
        if self._error is not None:
            raise ConnectionError(f"the mailbox of rank {self.rank} has failed: {self._error}") from self._error

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            while not (self._closing and not any(p.unsent for p in self._peers.values())):
                self._look()
        except Exception as error:
            self._error = error
            self._arrived.put(None)
        finally:
            self._selector.close()
            for peer in self._peers.values():
                peer.connection.close()

    def _look(self) -> None:
        for key, events in self._selector.select():
            peer = key.data
            if peer is None:
                self._woken.recv(4096)
                self._watch_writers()
                continue
            if events & selectors.EVENT_READ:
                self._read(peer)
            if events & selectors.EVENT_WRITE and peer.open:
                peer.flush()
                self._watch(peer)

    def _watch_writers(self) -> None:
        for peer in self._peers.values():
            if peer.unsent and peer.open:
                self._watch(peer)

    def _watch(self, peer: _Peer) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        self._selector.modify(peer.connection, wanted, peer)

    def _read(self, peer: _Peer) -> None:
        try:
            messages, ended = peer.read()
        except Malformed as error:
            raise Malformed(f"rank {peer.rank} sent what is no message: {error}") from error
        for message in messages:
            peer.said_goodbye |= message.kind == _BYE
            if message.kind != _BYE:
                self._arrived.put(message)
        if ended:
            self._selector.unregister(peer.connection)
            peer.hang_up()
            if not peer.said_goodbye and not self._closing:
                self._arrived.put(Message(peer.rank, LOST))


class Malformed(Exception):
    """Bytes that are no message."""


class _Peer:
    """One connection: what is still to be written to it, and the message that is being read from it."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank, self.connection = rank, connection
        self.open, self.said_goodbye = True, False
        self.unsent: Pieces = deque()
        self._lock = threading.Lock()
        self._reader = _Reader(rank)

    def send(self, pieces: list[memoryview]) -> bool:
        """Write what the kernel takes now, keep a copy of the rest; whether there is a rest."""
        with self._lock:
            if not self.open:
                return False
            rest = deque(pieces)
            if not self.unsent:
                self._write(rest)
            self.unsent += [memoryview(bytes(piece)) for piece in rest]
            return bool(self.unsent)

    def flush(self) -> None:
        with self._lock:
            self._write(self.unsent)

    def read(self) -> tuple[list[Message], bool]:
        """The messages that are complete by now, and whether the connection has ended."""
        return self._reader.read(self.connection)

    def hang_up(self) -> None:
        with self._lock:
            self.open = False
            self.unsent.clear()

    def _write(self, pieces: Pieces) -> None:
        try:
            while pieces:
                written = self.connection.send(pieces[0])
                if written < len(pieces[0]):
                    pieces[0] = pieces[0][written:]
                else:
                    pieces.popleft()
        except BlockingIOError:
            pass
        except OSError:
            # The reader will see the end as well, after what the peer sent before it.
            pieces.clear()


class _Reader:
    """Cuts one peer's bytes into messages: a prefix, a text, the tensors that the text describes.

    Memory grows with what has come, at most twice as fast, whatever length is announced.
    """

    def __init__(self, source: int) -> None:
        self._source = source
        self._begin(_PREFIX.size)

    def read(self, connection: socket.socket) -> tuple[list[Message], bool]:
        """The messages that are complete by now, and whether the connection has ended; Malformed where one is none."""
        complete: list[Message] = []
        try:
            while self._fill(connection, complete):
                pass
        except BlockingIOError:
            return complete, False
        except OSError:
            pass
        return complete, True

    def _begin(self, size: int, text: int | None = None) -> None:
        """Read `size` bytes: a body whose text has `text` bytes, or a prefix."""
        self._size, self._text, self._filled = size, text, 0
        self._buffer = bytearray(min(size, _CHUNK))

    def _fill(self, connection: socket.socket, complete: list[Message]) -> bool:
        with memoryview(self._buffer) as whole, whole[self._filled : self._filled + _CHUNK] as part:
            received = connection.recv_into(part)
        self._filled += received
        if self._filled == self._size:
            self._advance(complete)
        elif self._filled == len(self._buffer):
            self._buffer.extend(bytes(min(self._filled, self._size - self._filled)))
        return received > 0

    def _advance(self, complete: list[Message]) -> None:
        if self._text is not None:
            complete.append(_decoded(self._source, self._buffer, self._text))
            self._begin(_PREFIX.size)
            return
        text, words = _PREFIX.unpack(self._buffer)
        if not 0 < text <= _TEXT:
            raise Malformed(f"a text of {text} bytes, expected 1 to {_TEXT}")
        self._begin(_padded(text) + 8 * words, text)


def _encoded(kind: str, values: dict[str, Any], tensors: tuple[Tensor, ...]) -> list[memoryview]:
    """Prefix and text, then each tensor, each of the parts padded to a multiple of 8 bytes."""
    hosts = [t.detach().cpu().contiguous() for t in tensors]
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in hosts]
    text = json.dumps([kind, values, shapes]).encode()
    if len(text) > _TEXT:
        raise ValueError(
            f"a message '{kind}' has {len(text)} bytes beside its tensors, and at most {_TEXT} can be sent"
        )
    sizes = [t.numel() * t.element_size() for t in hosts]
    head = _PREFIX.pack(len(text), sum(map(_padded, sizes)) // 8) + text + bytes(_padded(len(text)) - len(text))
    pieces = [memoryview(head)]
    for tensor, size in zip(hosts, sizes, strict=True):
        if size:
            pieces.append(memoryview(tensor.view(-1).view(torch.uint8).numpy().data))
        if size % 8:
            pieces.append(memoryview(bytes(8 - size % 8)))
    return pieces


def _decoded(source: int, body: bytearray, length: int) -> Message:
    """The message in `body`, whose first `length` bytes are its text; Malformed where it is none."""
    try:
        kind, values, shapes = json.loads(bytes(body[:length]))
        described = [(_DTYPES[name], _shape(shape)) for name, shape in shapes]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Malformed(f"its text describes none ({type(error).__name__}: {error})") from error
    sizes = [_padded(math.prod(shape) * dtype.itemsize) for dtype, shape in described]
    if not isinstance(kind, str) or not isinstance(values, dict) or _padded(length) + sum(sizes) != len(body):
        raise Malformed(f"{len(body)} bytes, which are not those of the tensors that its text describes")
    tensors, start = [], _padded(length)
    for (dtype, shape), size in zip(described, sizes, strict=True):
        numel = math.prod(shape)
        flat = torch.frombuffer(body, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
        start += size
    return Message(source, kind, values, tensors)


def _shape(sizes: list[int]) -> list[int]:
    if not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"no shape: {sizes}")
    return sizes


def _padded(size: int) -> int:
    return -(-size // 8) * 8
