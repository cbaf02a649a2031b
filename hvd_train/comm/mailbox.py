"""A mailbox over one TCP connection per rank.

Sending never blocks, and the death of a rank arrives as a message. MPI's own messages are not used.
Its blocking receive spins, which takes a core from a rank that computes, and none of its calls
reports a dead rank.

A message on the wire is a prefix (the lengths of text and tensors), a JSON text, and the tensors
that the text describes.
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
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.messages import LOST, Message

_CLOSE = "bye"
"""Kind of the last message of a mailbox that is closed."""
_PREFIX = struct.Struct("!II")
"""The length of a message's text, and that of its tensors in units of 8 bytes."""
_TEXT = 64 << 20
"""Bytes of the longest text of a message."""
_CLOSING_SECONDS = 30.0
"""Seconds to send what is pending before the connections are closed."""
_CHUNK = 1 << 20
_DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
Buffers = deque[memoryview]


class TcpMailbox:
    """A `Mailbox` over `connections`, the sockets to the other ranks.

    `count` is called with the bytes of every message. A thread sleeps until a connection can be
    read or written.
    """

    def __init__(self, rank: int, connections: dict[int, socket.socket], count: Callable[[float], None]) -> None:
        self.rank = rank
        self._count = count
        self._arrived: SimpleQueue[Message | None] = SimpleQueue()
        """None: the thread has ended with `_error`."""
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
        self._check()
        if dst == self.rank:
            self._arrived.put(Message(dst, kind, values, [t.detach().cpu().clone() for t in tensors]))
            return
        buffers = _encoded(kind, values, tensors)
        self._count(sum(map(len, buffers)))
        if self._peers[dst].send(buffers):
            self._wake()

    def receive(self, timeout: float | None = None) -> Message | None:
        try:
            message = self._arrived.get(timeout=timeout)
        except Empty:
            return None
        if message is None:
            self._arrived.put(None)
            self._check()
        return message

    def close(self) -> None:
        for peer in self._peers.values():
            peer.send(_encoded(_CLOSE, {}, ()))
        self.hang_up()

    def hang_up(self) -> None:
        self._closing = True
        self._wake()
        self._thread.join(_CLOSING_SECONDS)
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
                self._poll()
        except Exception as error:
            self._error = error
            self._arrived.put(None)
        finally:
            self._selector.close()
            for peer in self._peers.values():
                peer.connection.close()

    def _poll(self) -> None:
        """Wait until some connections can be read or written, and do so."""
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
            raise Malformed(f"rank {peer.rank} sent bytes that are not a message: {error}") from error
        for message in messages:
            peer.closed |= message.kind == _CLOSE
            if message.kind != _CLOSE:
                self._arrived.put(message)
        if ended:
            self._selector.unregister(peer.connection)
            peer.drop()
            if not peer.closed and not self._closing:
                self._arrived.put(Message(peer.rank, LOST))


class Malformed(Exception):
    """Received bytes are not a message."""


class _Peer:
    """One connection, with the bytes that are still to be written and the message being read."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank, self.connection = rank, connection
        self.open, self.closed = True, False
        """`closed`: the other rank has closed its mailbox; the end of the connection is no loss."""
        self.unsent: Buffers = deque()
        self._lock = threading.Lock()
        self._reader = _Reader(rank)

    def send(self, buffers: list[memoryview]) -> bool:
        """Write what the kernel takes and keep a copy of the rest.

        Return True if there is a rest.
        """
        with self._lock:
            if not self.open:
                return False
            rest = deque(buffers)
            if not self.unsent:
                self._write(rest)
            self.unsent += [memoryview(bytes(buffer)) for buffer in rest]
            return bool(self.unsent)

    def flush(self) -> None:
        with self._lock:
            self._write(self.unsent)

    def read(self) -> tuple[list[Message], bool]:
        """Return the messages that are complete, and True if the connection has ended."""
        return self._reader.read(self.connection)

    def drop(self) -> None:
        """Discard what is unsent, and everything that is sent from now on."""
        with self._lock:
            self.open = False
            self.unsent.clear()

    def _write(self, buffers: Buffers) -> None:
        try:
            while buffers:
                written = self.connection.send(buffers[0])
                if written < len(buffers[0]):
                    buffers[0] = buffers[0][written:]
                else:
                    buffers.popleft()
        except BlockingIOError:
            pass
        except OSError:
            # The reader finds the end of the connection too, after the last messages.
            buffers.clear()


class _Reader:
    """Splits the bytes of one peer into messages.

    Its memory grows with the bytes received, at most twice as fast, whatever length a prefix
    announces.
    """

    def __init__(self, source: int) -> None:
        self._source = source
        self._begin(_PREFIX.size)

    def read(self, connection: socket.socket) -> tuple[list[Message], bool]:
        """Return the messages that are complete, and True if the connection has ended.

        Malformed if bytes are no message.
        """
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
        """Expect `size` bytes: a body whose text has `text` bytes, or a prefix (None)."""
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
    """Return the buffers of a message: prefix, text and tensors, padded to 8 bytes."""
    hosts = [t.detach().cpu().contiguous() for t in tensors]
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in hosts]
    text = json.dumps([kind, values, shapes]).encode()
    if len(text) > _TEXT:
        raise ValueError(
            f"a message '{kind}' has {len(text)} bytes beside its tensors, and at most {_TEXT} can be sent"
        )
    sizes = [t.numel() * t.element_size() for t in hosts]
    head = _PREFIX.pack(len(text), sum(map(_padded, sizes)) // 8) + text + bytes(_padded(len(text)) - len(text))
    buffers = [memoryview(head)]
    for tensor, size in zip(hosts, sizes, strict=True):
        if size:
            buffers.append(memoryview(tensor.view(-1).view(torch.uint8).numpy().data))
        if size % 8:
            buffers.append(memoryview(bytes(8 - size % 8)))
    return buffers


def _decoded(source: int, body: bytearray, length: int) -> Message:
    """Return the message in `body`, whose text has `length` bytes. Malformed if it is none."""
    try:
        kind, values, shapes = json.loads(bytes(body[:length]))
        described = [(_DTYPES[name], _shape(shape)) for name, shape in shapes]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Malformed(f"its text describes no message ({type(error).__name__}: {error})") from error
    sizes = [_padded(math.prod(shape) * dtype.itemsize) for dtype, shape in described]
    if not isinstance(kind, str) or not isinstance(values, dict) or _padded(length) + sum(sizes) != len(body):
        raise Malformed(f"{len(body)} bytes, which differ from the tensors that its text describes")
    tensors, start = [], _padded(length)
    for (dtype, shape), size in zip(described, sizes, strict=True):
        numel = math.prod(shape)
        flat = torch.frombuffer(body, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
        start += size
    return Message(source, kind, values, tensors)


def _shape(sizes: list[int]) -> list[int]:
    if not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"not a shape: {sizes}")
    return sizes


def _padded(size: int) -> int:
    return -(-size // 8) * 8
