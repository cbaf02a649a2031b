"""TCP connections between each two ranks, over which both have proved that they are ranks of this job.

A rank listens on the job's network only (`_addresses.py`) and calls every rank below it. The called rank sends a random
challenge. The caller answers with its number, a challenge of its own, and a proof. The called rank checks them and answers with
its proof. A proof is an HMAC-SHA256 of the other side's challenge and both numbers, under a token that ranks share by a
collective. So the token never travels here, the caller knows that it has reached the right rank, and a recorded proof is of no
use later. The messages that follow are neither encrypted nor authenticated: an attacker who can change packets on the way is not
provided for.
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
from typing import TYPE_CHECKING, Any

from hvd_train.comm import _addresses
from hvd_train.comm._mailbox import Mailbox
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from hvd_train.comm.base import Communicator

_SECONDS = 30.0
"""In which all connections must be there."""
_PAUSE = 0.1
"""Seconds between two attempts to call a rank."""
_STRANGERS = 128
"""Connections that may wait at a time for their proof: of more, the oldest is closed. A rank whose is calls again."""
_CHALLENGE = 16
_PROOF = 32
_CALL = struct.Struct(f"!I{_CHALLENGE}s{_PROOF}s")
"""The caller's rank, its challenge, and its proof."""
_PAIR = struct.Struct("!II")
_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A host that vanishes says nothing: ask after 5 s of silence, and give it up after 15.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15000),
]


def connect(comm: Communicator) -> Mailbox:
    """The mailboxes of the ranks of `comm`; collective. UserError on all of them where two cannot reach each other."""
    from hvd_train.comm.base import broadcast_json, gather_json

    if comm.size == 1:
        return Mailbox(comm.rank, {}, comm._count)
    token = bytes.fromhex(broadcast_json(comm, secrets.token_hex(32)))
    facts = gather_json(comm, _addresses.facts(comm.interfaces))
    listener, here = _listening(comm.rank, facts)
    with listener or nullcontext():
        places = gather_json(comm, here)
        _refuse(places)
        assert listener is not None, "a rank without one has a problem"
        met = _Meeting(comm.rank, places, token, time.monotonic() + _SECONDS)
        try:
            met.call()
            met.accept(listener)
        except (OSError, UserError) as error:
            here["problem"] = str(error)
    try:
        _refuse(gather_json(comm, here))
    except UserError:
        met.hang_up()
        raise
    for connection in met.connections.values():
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)
    return Mailbox(comm.rank, met.connections, comm._count)


def _listening(rank: int, facts: Sequence[_addresses.Facts]) -> tuple[socket.socket | None, dict[str, Any]]:
    """The socket at which `rank` listens, and what the others are to know of it: where it is, or why it is not there."""
    here: dict[str, Any] = {"host": facts[rank]["host"]}
    try:
        here["at"] = _addresses.own(rank, facts)
        listener = socket.create_server((here["at"], 0), backlog=128 + len(facts))
    except (OSError, UserError) as error:
        problem = f"{error} (rank {rank} on {here['host']}, whose address is {here.get('at', 'unknown')})"
        return None, {**here, "problem": problem}
    return listener, {**here, "port": listener.getsockname()[1]}


def _refuse(places: Sequence[dict[str, Any]]) -> None:
    problem = next((place["problem"] for place in places if "problem" in place), None)
    if problem:
        raise UserError(problem)


class _Meeting:
    """The `connections` of rank `me` to the others, at `places`, until the `deadline`."""

    def __init__(self, me: int, places: Sequence[dict[str, Any]], token: bytes, deadline: float) -> None:
        self._me, self._places, self._token, self._deadline = me, places, token, deadline
        self.connections: dict[int, socket.socket] = {}

    def call(self) -> None:
        """Connect to the ranks below; UserError where one is not reached."""
        for peer in range(self._me):
            self.connections[peer] = self._reached(peer)

    def accept(self, listener: socket.socket) -> None:
        """Wait for the ranks above, whoever else calls; UserError where one does not."""
        with _Door(listener) as door:
            while self._missing and self._left():
                for visitor in door.wait(self._left()):
                    self._hear(visitor, door)
        if self._missing:
            peer = min(self._missing)
            raise UserError(
                f"rank {peer} on {self._places[peer]['host']} did not connect to {self._name(self._me)} "
                f"in {_SECONDS:.0f} s; {_NEED}"
            )

    def hang_up(self) -> None:
        for connection in self.connections.values():
            connection.close()

    @property
    def _missing(self) -> set[int]:
        return set(range(len(self._places))) - {self._me} - self.connections.keys()

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _name(self, rank: int) -> str:
        place = self._places[rank]
        return f"rank {rank} on {place['host']} ({place['at']}, TCP port {place['port']})"

    def _hear(self, visitor: _Visitor, door: _Door) -> None:
        """Take in one that has proved to be a rank that is missing; close one that cannot be."""
        try:
            caller = visitor.caller(self._token, self._me)
            if caller is None:
                return
            if caller not in self._missing:
                raise ConnectionError(f"no rank {caller} is expected")
            visitor.connection.sendall(visitor.answer(self._token, caller, self._me))
        except OSError:
            door.dismiss(visitor).close()
        else:
            self.connections[caller] = door.dismiss(visitor)

    def _reached(self, peer: int) -> socket.socket:
        while True:
            try:
                return self._introduced(peer)
            except OSError as error:
                if self._left() <= _PAUSE:
                    raise UserError(
                        f"{self._name(self._me)} does not reach {self._name(peer)} in {_SECONDS:.0f} s: {error}; {_NEED}"
                    ) from None
            time.sleep(_PAUSE)

    def _introduced(self, peer: int) -> socket.socket:
        """A connection over which `peer` has proved to be that rank; OSError where it has not."""
        place = self._places[peer]
        connection = socket.create_connection((place["at"], place["port"]), timeout=self._left() or _PAUSE)
        try:
            challenge, mine = self._exactly(connection, _CHALLENGE), secrets.token_bytes(_CHALLENGE)
            proof = _proof(self._token, b"call", challenge, self._me, peer)
            connection.sendall(_CALL.pack(self._me, mine, proof))
            if not hmac.compare_digest(
                self._exactly(connection, _PROOF), _proof(self._token, b"answer", mine, self._me, peer)
            ):
                raise ConnectionError("another program answers there")
        except BaseException:
            connection.close()
            raise
        return connection

    def _exactly(self, connection: socket.socket, size: int) -> bytes:
        received = b""
        while len(received) < size:
            connection.settimeout(self._left() or _PAUSE)
            part = connection.recv(size - len(received))
            if not part:
                raise ConnectionError("the connection was closed")
            received += part
        return received


_NEED = "asynchronous strategies, pipelines and --check-collectives need TCP connections between all ranks"


class _Door:
    """Connections that `listener` has accepted, until each has proved what it is."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._visitors: list[_Visitor] = []
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for visitor in self._visitors:
            visitor.connection.close()

    def wait(self, seconds: float) -> list[_Visitor]:
        """Those of which something came in at most `seconds`."""
        ready = [key.data for key, _ in self._selector.select(seconds)]
        if None in ready:
            self._admit()
        return [visitor for visitor in self._visitors if visitor in ready]

    def dismiss(self, visitor: _Visitor) -> socket.socket:
        """Listen to it no longer; return its connection."""
        self._selector.unregister(visitor.connection)
        self._visitors.remove(visitor)
        return visitor.connection

    def _admit(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        try:
            visitor = _Visitor(connection)
        except OSError:
            connection.close()
            return
        if len(self._visitors) == _STRANGERS:
            self.dismiss(self._visitors[0]).close()
        self._visitors.append(visitor)
        self._selector.register(connection, selectors.EVENT_READ, visitor)


class _Visitor:
    """A connection whose other end has proved nothing yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._challenge, self._received = secrets.token_bytes(_CHALLENGE), b""
        connection.setblocking(False)
        connection.sendall(self._challenge)

    def caller(self, token: bytes, me: int) -> int | None:
        """The rank that it has proved to be to rank `me`; None while bytes are missing. OSError where it has proved nothing."""
        try:
            part = self.connection.recv(_CALL.size - len(self._received))
        except BlockingIOError:
            return None
        if not part:
            raise ConnectionError("the connection was closed")
        self._received += part
        if len(self._received) < _CALL.size:
            return None
        caller, self._theirs, proof = _CALL.unpack(self._received)
        if not hmac.compare_digest(proof, _proof(token, b"call", self._challenge, caller, me)):
            raise ConnectionError("a stranger")
        return int(caller)

    def answer(self, token: bytes, caller: int, me: int) -> bytes:
        return _proof(token, b"answer", self._theirs, caller, me)


def _proof(token: bytes, role: bytes, challenge: bytes, caller: int, called: int) -> bytes:
    return hmac.digest(token, role + challenge + _PAIR.pack(caller, called), "sha256")
