"""Opens mailboxes: TCP connections between every two ranks, authenticated by a token.

A rank listens on the job's network only (`addresses.py`) and connects to every lower rank. The
handshake:

1. The lower rank (server) sends a random challenge.
2. The higher rank (client) sends its number, a challenge of its own, and a proof.
3. The server checks the proof and sends its own.

A proof is an HMAC-SHA256 of the other side's challenge and both numbers, under a token that ranks
share by a collective. So the token is never sent here, the client knows that it has reached the
right rank, and a recorded proof is of no use later. The messages that follow are neither encrypted
nor authenticated: the handshake does not protect against an attacker who can change packets on
their way.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from hvd_train.comm import addresses
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.mailbox import TcpMailbox
from hvd_train.comm.objects import broadcast_json, gather_json
from hvd_train.comm.traffic import Traffic
from hvd_train.errors import UserError

_SECONDS = 30.0
"""Seconds in which all connections must be made."""
_RETRY_SECONDS = 0.1
"""Seconds between two attempts to connect to a rank."""
_PENDING = 128
"""Accepted connections that may wait for their proof; the oldest is closed for the next one.

A rank connects again.
"""
_CHALLENGE = 16
_PROOF = 32
_HELLO = struct.Struct(f"!I{_CHALLENGE}s{_PROOF}s")
"""The client's rank, its challenge, and its proof."""
_PAIR = struct.Struct("!II")
_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A host that vanishes sends nothing: probe after 5 s, and end the connection after 15 s.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15000),
]
_NEED = "asynchronous strategies, pipelines and --check-collectives need TCP connections between all ranks"

Endpoint = dict[str, Any]
"""Where a rank listens: `host`, address `at` and `port`, or `host` and `problem`."""


def connect(comm: Communicator, traffic: Traffic | None = None) -> TcpMailbox:
    """Open the mailbox of this rank of `comm`; collective.

    UserError on all ranks if two ranks cannot connect. Messages are counted in `traffic`, by
    default that of `comm`.
    """
    count = (traffic or comm.traffic).add
    if comm.size == 1:
        return TcpMailbox(comm.rank, {}, count)
    token = bytes.fromhex(broadcast_json(comm, secrets.token_hex(32)))
    facts = gather_json(comm, addresses.facts(comm.interfaces))
    listener, own = _listen(comm.rank, facts)
    with listener or nullcontext():
        endpoints = gather_json(comm, own)
        _check(endpoints)
        assert listener is not None, "a rank without a listener has reported a problem"
        handshakes = _Handshakes(comm.rank, endpoints, token, time.monotonic() + _SECONDS)
        try:
            handshakes.connect()
            handshakes.accept(listener)
        except (OSError, UserError) as error:
            own["problem"] = str(error)
    try:
        _check(gather_json(comm, own))
    except UserError:
        handshakes.close()
        raise
    for connection in handshakes.connections.values():
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)
    return TcpMailbox(comm.rank, handshakes.connections, count)


def _listen(rank: int, facts: Sequence[addresses.Facts]) -> tuple[socket.socket | None, Endpoint]:
    """Return the socket on which `rank` listens, and its endpoint.

    If it cannot listen, the socket is None and the endpoint has a problem.
    """
    own: Endpoint = {"host": facts[rank]["host"]}
    try:
        own["at"] = addresses.own(rank, facts)
        listener = socket.create_server((own["at"], 0), backlog=128 + len(facts))
    except (OSError, UserError) as error:
        problem = f"{error} (rank {rank} on {own['host']}, whose address is {own.get('at', 'unknown')})"
        return None, {**own, "problem": problem}
    return listener, {**own, "port": listener.getsockname()[1]}


def _check(endpoints: Sequence[Endpoint]) -> None:
    """Raise UserError with the first problem."""
    problem = next((endpoint["problem"] for endpoint in endpoints if "problem" in endpoint), None)
    if problem:
        raise UserError(problem)


class _Handshakes:
    """Makes the authenticated `connections` of rank `me` until the `deadline`."""

    def __init__(self, me: int, endpoints: Sequence[Endpoint], token: bytes, deadline: float) -> None:
        self._me, self._endpoints, self._token, self._deadline = me, endpoints, token, deadline
        self.connections: dict[int, socket.socket] = {}

    def connect(self) -> None:
        """Connect to the lower ranks. UserError if one cannot be reached."""
        for peer in range(self._me):
            self.connections[peer] = self._connect(peer)

    def accept(self, listener: socket.socket) -> None:
        """Accept connections of the higher ranks and close all others.

        UserError if a rank does not connect.
        """
        with _Acceptor(listener) as acceptor:
            while self._missing and self._left():
                for pending in acceptor.wait(self._left()):
                    self._admit(pending, acceptor)
        if self._missing:
            peer = min(self._missing)
            raise UserError(
                f"rank {peer} on {self._endpoints[peer]['host']} did not connect to {self._name(self._me)} "
                f"in {_SECONDS:.0f} s; {_NEED}"
            )

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()

    @property
    def _missing(self) -> set[int]:
        return set(range(len(self._endpoints))) - {self._me} - self.connections.keys()

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _name(self, rank: int) -> str:
        endpoint = self._endpoints[rank]
        return f"rank {rank} on {endpoint['host']} ({endpoint['at']}, TCP port {endpoint['port']})"

    def _admit(self, pending: _Pending, acceptor: _Acceptor) -> None:
        """Keep the connection of a missing rank; close one whose handshake fails."""
        try:
            client = pending.client(self._token, self._me)
            if client is None:
                return
            if client not in self._missing:
                raise ConnectionError(f"no rank {client} is expected")
            pending.connection.sendall(pending.answer(self._token, client, self._me))
        except OSError:
            acceptor.release(pending).close()
        else:
            self.connections[client] = acceptor.release(pending)

    def _connect(self, peer: int) -> socket.socket:
        while True:
            try:
                return self._authenticated(peer)
            except OSError as error:
                if self._left() <= _RETRY_SECONDS:
                    raise UserError(
                        f"{self._name(self._me)} does not reach {self._name(peer)} in {_SECONDS:.0f} s: {error}; {_NEED}"
                    ) from None
            time.sleep(_RETRY_SECONDS)

    def _authenticated(self, peer: int) -> socket.socket:
        """Return a connection over which `peer` has proved its identity. OSError if it has not."""
        endpoint = self._endpoints[peer]
        timeout = self._left() or _RETRY_SECONDS
        connection = socket.create_connection((endpoint["at"], endpoint["port"]), timeout=timeout)
        try:
            challenge, own = self._exactly(connection, _CHALLENGE), secrets.token_bytes(_CHALLENGE)
            proof = _proof(self._token, b"call", challenge, self._me, peer)
            connection.sendall(_HELLO.pack(self._me, own, proof))
            if not hmac.compare_digest(
                self._exactly(connection, _PROOF), _proof(self._token, b"answer", own, self._me, peer)
            ):
                raise ConnectionError("another program answers there")
        except BaseException:
            connection.close()
            raise
        return connection

    def _exactly(self, connection: socket.socket, size: int) -> bytes:
        received = b""
        while len(received) < size:
            connection.settimeout(self._left() or _RETRY_SECONDS)
            part = connection.recv(size - len(received))
            if not part:
                raise ConnectionError("the connection was closed")
            received += part
        return received


class _Acceptor:
    """Accepts connections of `listener` and holds them until their handshakes end."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._pending: list[_Pending] = []
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)

    def __enter__(self) -> _Acceptor:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for pending in self._pending:
            pending.connection.close()

    def wait(self, seconds: float) -> list[_Pending]:
        """Return the connections that have received bytes, within `seconds`."""
        ready = [key.data for key, _ in self._selector.select(seconds)]
        if None in ready:
            self._accept()
        return [pending for pending in self._pending if pending in ready]

    def release(self, pending: _Pending) -> socket.socket:
        """Stop watching a connection and return its socket."""
        self._selector.unregister(pending.connection)
        self._pending.remove(pending)
        return pending.connection

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # The client has closed it.
        try:
            pending = _Pending(connection)
        except OSError:
            connection.close()
            return
        if len(self._pending) == _PENDING:
            self.release(self._pending[0]).close()
        self._pending.append(pending)
        self._selector.register(connection, selectors.EVENT_READ, pending)


class _Pending:
    """An accepted connection whose client has not been authenticated."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._challenge, self._received = secrets.token_bytes(_CHALLENGE), b""
        connection.setblocking(False)
        connection.sendall(self._challenge)

    def client(self, token: bytes, me: int) -> int | None:
        """Return the client's rank once it has proved it to rank `me`; None until then.

        OSError if the proof is wrong or the connection has ended.
        """
        try:
            part = self.connection.recv(_HELLO.size - len(self._received))
        except BlockingIOError:
            return None
        if not part:
            raise ConnectionError("the connection was closed")
        self._received += part
        if len(self._received) < _HELLO.size:
            return None
        client, self._theirs, proof = _HELLO.unpack(self._received)
        if not hmac.compare_digest(proof, _proof(token, b"call", self._challenge, client, me)):
            raise ConnectionError("the client does not know the job's token")
        return int(client)

    def answer(self, token: bytes, client: int, me: int) -> bytes:
        """Return the proof that this side is rank `me`."""
        return _proof(token, b"answer", self._theirs, client, me)


def _proof(token: bytes, role: bytes, challenge: bytes, client: int, server: int) -> bytes:
    return hmac.digest(token, role + challenge + _PAIR.pack(client, server), "sha256")
