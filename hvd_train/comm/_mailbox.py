"""Messages between single ranks, over TCP connections of their own: nobody waits, and a rank that dies is a message too.

MPI's own messages would do for the bytes. But its blocking receive looks for messages without a pause, which takes a core from
whoever computes, and a rank that has died is noticed by none of its calls.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import torch
from torch import Tensor

from hvd_train.errors import UserError

if TYPE_CHECKING:
    from hvd_train.comm.base import Communicator

LOST = "lost"
_BYE = "bye"
_PREFIX = struct.Struct("!II")
"""Lengths of a message's text, and of the tensors after it in units of 8 bytes."""
_HELLO = struct.Struct("!16sI")
_SECONDS = 30.0
_CHUNK = 1 << 20
_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A host that vanishes says nothing: ask after 5 s of silence, and give it up after 15.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15000),
]
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
    it from then on is dropped.
    """

    _counting: ClassVar = threading.Lock()
    """Mailboxes of one communicator, and threads that use them, add to the same number."""

    def __init__(self, rank: int, connections: dict[int, socket.socket], count: Callable[[float], None]) -> None:
        self.rank = rank
        self._count = count
        self._arrived: SimpleQueue[Message] = SimpleQueue()
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
            return self._arrived.get(timeout=timeout)
        except Empty:
            return None

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

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            while not (self._closing and not any(p.unsent for p in self._peers.values())):
                self._look()
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
        messages, ended = peer.read()
        for message in messages:
            peer.said_goodbye |= message.kind == _BYE
            if message.kind != _BYE:
                self._arrived.put(message)
        if ended:
            self._selector.unregister(peer.connection)
            peer.hang_up()
            if not peer.said_goodbye and not self._closing:
                self._arrived.put(Message(peer.rank, LOST))


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
    """Cuts one peer's bytes into messages: a prefix, a text, the tensors that the text describes."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._begin()

    def read(self, connection: socket.socket) -> tuple[list[Message], bool]:
        complete: list[Message] = []
        try:
            while self._fill(connection, complete):
                pass
        except BlockingIOError:
            return complete, False
        except OSError:
            pass
        return complete, True

    def _begin(self) -> None:
        self._prefix, self._filled = bytearray(_PREFIX.size), 0
        self._body: bytearray | None = None

    def _fill(self, connection: socket.socket, complete: list[Message]) -> bool:
        buffer = self._prefix if self._body is None else self._body
        view = memoryview(buffer)[self._filled : self._filled + _CHUNK]
        received = connection.recv_into(view)
        self._filled += received
        if self._filled == len(buffer):
            self._advance(complete)
        return received > 0

    def _advance(self, complete: list[Message]) -> None:
        if self._body is None:
            text, words = _PREFIX.unpack(self._prefix)
            self._body, self._filled, self._text = bytearray(_padded(text) + 8 * words), 0, text
        else:
            complete.append(_decoded(self._source, self._body, self._text))
            self._begin()


def connect(comm: Communicator) -> Mailbox:
    """The mailboxes of the ranks of `comm`; collective. UserError where two ranks cannot reach each other."""
    from hvd_train.comm.base import broadcast_json, gather_json

    token = bytes.fromhex(broadcast_json(comm, secrets.token_hex(16)))
    listener = socket.create_server(("", 0), backlog=max(1, comm.size))
    here = {"host": socket.gethostname(), "network": _network(), "port": listener.getsockname()[1], "at": _addresses()}
    everybody = gather_json(comm, here)
    connections: dict[int, socket.socket] = {}
    with listener:
        for peer in range(comm.rank):
            connections[peer] = _call(everybody[peer], here["network"], _HELLO.pack(token, comm.rank))
        listener.settimeout(_SECONDS)
        while len(connections) < comm.size - 1:
            caller, connection = _accept(listener, token)
            if caller is not None:
                connections[caller] = connection
    for connection in connections.values():
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)
    comm.barrier()
    return Mailbox(comm.rank, connections, comm._count)


def _network() -> list[int]:
    """What two ranks have in common that reach each other over the loopback interface."""
    there = os.stat("/proc/self/ns/net")
    return [there.st_dev, there.st_ino]


def _addresses() -> list[str]:
    every = (a.address for of in psutil.net_if_addrs().values() for a in of if a.family == socket.AF_INET)
    return [address for address in every if not address.startswith("127.")]


def _call(peer: dict[str, Any], network: list[int], hello: bytes) -> socket.socket:
    same = peer["network"] == network and peer["host"] == socket.gethostname()
    for address in ["127.0.0.1"] if same else peer["at"]:
        try:
            connection = socket.create_connection((address, peer["port"]), timeout=5)
            connection.sendall(hello)
            return connection
        except OSError:
            continue
    raise UserError(
        f"{socket.gethostname()} reaches no address of {peer['host']} ({', '.join(peer['at'])}) at TCP port {peer['port']}; "
        "asynchronous strategies need connections between all hosts"
    )


def _accept(listener: socket.socket, token: bytes) -> tuple[int | None, socket.socket]:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        raise UserError(f"a rank did not connect to {socket.gethostname()} in {_SECONDS:.0f} s") from None
    connection.settimeout(5)
    try:
        hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
    except OSError:
        hello = b""
    sent, peer = _HELLO.unpack(hello) if len(hello) == _HELLO.size else (b"", 0)
    if secrets.compare_digest(sent, token):
        return peer, connection
    connection.close()
    return None, connection


def _encoded(kind: str, values: dict[str, Any], tensors: tuple[Tensor, ...]) -> list[memoryview]:
    """Prefix and text, then each tensor, each of the parts padded to a multiple of 8 bytes."""
    hosts = [t.detach().cpu().contiguous() for t in tensors]
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in hosts]
    text = json.dumps([kind, values, shapes]).encode()
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
    kind, values, shapes = json.loads(bytes(body[:length]))
    tensors, start = [], _padded(length)
    for name, shape in shapes:
        dtype = _DTYPES[name]
        numel = torch.Size(shape).numel()
        flat = torch.frombuffer(body, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
        start += _padded(numel * dtype.itemsize)
    return Message(source, kind, values, tensors)


def _padded(size: int) -> int:
    return -(-size // 8) * 8
