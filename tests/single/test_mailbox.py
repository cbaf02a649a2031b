"""Mailboxes of threads; `tests/parallel/test_mailbox.py` runs the same bodies under mpirun."""

from __future__ import annotations

import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from hvd_train.comm import addresses, connect, mailbox
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.mailbox import Malformed, TcpMailbox
from hvd_train.comm.wrappers import emulated
from hvd_train.errors import UserError
from tests.bodies import mailbox as body
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def test_a_closed_mailbox_leaves_no_thread() -> None:
    before = threading.active_count()
    SingleCommunicator().mailbox().close()
    assert threading.active_count() == before


def test_an_idle_mailbox_takes_no_cpu_time() -> None:
    def idle(comm: Communicator) -> float:
        mail = comm.mailbox()
        comm.barrier()
        before = time.process_time()
        assert mail.receive(1.0) is None
        used = time.process_time() - before
        comm.barrier()
        mail.close()
        return used

    assert max(threads.run(2, idle)) < 0.1


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[tuple[str, int]], None]], None]:
    """Call a function with the address of each rank that listens, before another rank connects."""
    real = socket.create_server

    def watch(seen: Callable[[tuple[str, int]], None]) -> None:
        def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
            server = real(address, **options)
            seen(server.getsockname())
            return server

        monkeypatch.setattr(socket, "create_server", create_server)

    return watch


def test_ranks_of_one_host_listen_on_loopback_only(listens: Any) -> None:
    seen: list[tuple[str, int]] = []
    listens(seen.append)
    threads.run(3, body.tensors_arrive_as_they_were)
    assert [host for host, _ in seen] == ["127.0.0.1"] * 3


def hello(rank: int) -> bytes:
    """Return a client's hello with a wrong proof."""
    return connect._HELLO.pack(rank, bytes(16), bytes(32))


STRANGERS = {
    "silent": [b""],
    "of one byte": [b"\0"],
    "with nonsense": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4],
    "that says it is rank 1": [hello(1)],
    "that says it is another rank": [hello(0), hello(2), hello(2**32 - 1)],
    "that announces gigabytes": [b"\xff" * 64],
    "in numbers": [b""] * 20 + [hello(1)] * 20,
    "in more numbers than are kept": [b""] * 60,
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_strangers_neither_delay_nor_replace_a_rank(
    words: list[bytes], listens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers connect before any rank does, and stay connected."""
    monkeypatch.setattr(connect, "_PENDING", 48)
    left: list[socket.socket] = []

    def visit(address: tuple[str, int]) -> None:
        for word in words:
            stranger = socket.create_connection(address)
            left.append(stranger)
            stranger.sendall(word)

    listens(visit)
    began = time.monotonic()
    threads.run(3, body.tensors_arrive_as_they_were)
    assert time.monotonic() - began < 15
    for stranger in left:
        stranger.settimeout(10)
        try:
            received = stranger.recv(1 << 16)
            assert len(received) <= 16, "a stranger received more than a challenge"
            assert not received or stranger.recv(1 << 16) == b""
        except ConnectionError:
            pass
        stranger.close()


def test_a_rank_that_does_not_connect_is_named_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_SECONDS", 1.0)
    real = connect._Handshakes.connect
    monkeypatch.setattr(connect._Handshakes, "connect", lambda self: None if self._me == 2 else real(self))

    def refused(comm: Communicator) -> str:
        with pytest.raises(UserError) as error:
            comm.mailbox()
        return str(error.value)

    texts = threads.run(3, refused)
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"rank 2 on {socket.gethostname()} did not connect to rank 0 on")


@pytest.mark.parametrize("answer", [b"", b"x" * 16, b"x" * 47, b"x" * 48, b"x" * 4096])
def test_a_program_at_the_address_of_a_rank_is_not_accepted(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It receives a proof for its own challenge, and never the token."""
    monkeypatch.setattr(connect, "_SECONDS", 0.6)
    received_hellos: list[bytes] = []

    def answering(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.sendall(answer)
                received_hellos.append(connection.recv(4096) if len(answer) >= 16 else b"")
                connection.close()
            except OSError:
                return

    token = secrets.token_bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=answering, args=(listener,), daemon=True).start()
        endpoints = [{"host": "n0", "at": "127.0.0.1", "port": port}, {"host": "n1", "at": "127.0.0.1", "port": 1}]
        handshakes = connect._Handshakes(1, endpoints, token, time.monotonic() + 0.6)
        with pytest.raises(
            UserError, match=rf"rank 1 on n1 .* does not reach rank 0 on n0 \(127.0.0.1, TCP port {port}\)"
        ):
            handshakes.connect()
        listener.shutdown(socket.SHUT_RDWR)
    assert not handshakes.connections
    assert len(received_hellos) > 1, "the client tries again"
    for hello in filter(None, received_hellos):
        client, _, proof = connect._HELLO.unpack(hello)
        assert (client, proof) == (1, connect._proof(token, b"call", answer[:16], 1, 0))


def test_only_missing_ranks_are_accepted_and_each_once() -> None:
    """Rank 1 of 4 expects 2 and 3.

    Clients that know the token connect as 0, 1, 4, and as 2 again.
    """
    token, deadline = secrets.token_bytes(32), time.monotonic() + 30
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoints = [{"host": "here", "at": "127.0.0.1", "port": listener.getsockname()[1]}] * 4
        handshakes = connect._Handshakes(1, endpoints, token, deadline)
        handshakes.connections[0] = socket.socket()
        waiting = threading.Thread(target=handshakes.accept, args=(listener,))
        waiting.start()
        made = [connect._Handshakes(2, endpoints, token, deadline)._authenticated(1)]
        for rank in (0, 1, 4, 2):
            with pytest.raises(ConnectionError):
                connect._Handshakes(rank, endpoints, token, deadline)._authenticated(1)
        made.append(connect._Handshakes(3, endpoints, token, deadline)._authenticated(1))
        waiting.join(30)
    assert sorted(handshakes.connections) == [0, 2, 3]
    for connection in [*made, *handshakes.connections.values()]:
        connection.close()


def test_a_proof_is_valid_for_one_challenge_one_direction_and_two_ranks() -> None:
    """A recorded proof is of no use, neither for another rank nor for another connection."""
    token = secrets.token_bytes(32)
    proof = connect._proof(token, b"call", b"a" * 16, 2, 1)
    others = [
        (token, b"answer", b"a" * 16, 2, 1),
        (token, b"call", b"b" * 16, 2, 1),
        (token, b"call", b"a" * 16, 1, 2),
        (token, b"call", b"a" * 16, 2, 0),
        (secrets.token_bytes(32), b"call", b"a" * 16, 2, 1),
    ]
    assert len({proof, *(connect._proof(*other) for other in others)}) == 6


def message(kind: Any = "x", values: Any = None, shapes: Any = None, tensors: bytes = b"") -> bytes:
    text = json.dumps([kind, {} if values is None else values, [] if shapes is None else shapes]).encode()
    padding = bytes(-len(text) % 8)
    return struct.pack("!II", len(text), -(-len(tensors) // 8)) + text + padding + tensors


NO_MESSAGE = {
    "no JSON": struct.pack("!II", 8, 0) + b"{{{{{{{{",
    "no text": struct.pack("!II", 0, 0),
    "no UTF-8": struct.pack("!II", 8, 0) + b"\xff" * 8,
    "nested without end": struct.pack("!II", 80_000, 0) + b"[" * 80_000,
    "a text of gigabytes": b"\xff" * 8,
    "another shape": struct.pack("!II", 8, 0) + b'"a text"',
    "too few parts": struct.pack("!II", 8, 0) + b"[1, 2]  ",
    "a kind that is no text": message(kind=7),
    "values that are no names": message(values=[1]),
    "an unknown dtype": message(shapes=[["float33", [1]]], tensors=bytes(8)),
    "a dtype that is none": message(shapes=[["__doc__", [1]]], tensors=bytes(8)),
    "a dtype that is no text": message(shapes=[[[], [1]]], tensors=bytes(8)),
    "a negative shape": message(shapes=[["float32", [-1]]]),
    "a shape that is no number": message(shapes=[["float32", ["2"]]], tensors=bytes(8)),
    "a shape that is none": message(shapes=[["float32", 2]], tensors=bytes(8)),
    "more than was sent": message(shapes=[["float64", [2**40]]], tensors=bytes(8)),
    "more than any memory": message(shapes=[["float64", [2**40, 2**40]]], tensors=bytes(8)),
    "less than was sent": message(shapes=[["float64", [1]]], tensors=bytes(16)),
}


@pytest.mark.parametrize("wrap", [None, emulated.emulated], ids=["plain", "emulated"])
@pytest.mark.parametrize("data", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_bytes_that_are_no_message_end_every_wait_with_an_error(data: bytes, wrap: Any) -> None:
    """`receive` and `send` raise, also a `receive` that waits already.

    The error names the sender.
    """

    def body(comm: Communicator) -> None:
        mail = (wrap(comm) if wrap else comm).mailbox()
        if comm.rank == 1:
            inner: TcpMailbox = mail._inner if wrap else mail
            inner._peers[0].connection.sendall(data)
            comm.barrier()
            mail.hang_up()
            return
        for _ in range(2):
            with pytest.raises(
                ConnectionError, match=r"the mailbox of rank 0 has failed: rank 1 sent bytes that are not a message"
            ):
                mail.receive(20)
        with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed"):
            mail.send(1, "x")
        with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed"):
            mail.send(0, "x")
        comm.barrier()
        (mail._inner if wrap else mail).close()

    before = threading.active_count()
    threads.run(2, body)
    assert threading.active_count() <= before


def test_other_errors_in_the_thread_of_a_mailbox_are_raised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(comm: Communicator) -> None:
        mail = comm.mailbox()
        if comm.rank == 0:
            monkeypatch.setattr(mail, "_read", lambda peer: 1 / 0)
        comm.barrier()
        if comm.rank == 1:
            mail.send(0, "x")
        else:
            with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed: division by zero"):
                mail.receive()
        comm.barrier()
        mail.hang_up()

    threads.run(2, body)


def test_memory_grows_with_received_and_not_with_announced_bytes() -> None:
    """Of 32 GiB announced, 8 MiB arrive. The reader allocates at most twice what has arrived."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader = mailbox._Reader(1)
    before = psutil.Process().memory_info().rss
    ours.sendall(struct.pack("!II", 16, 2**32 - 1))
    assert reader.read(theirs) == ([], False)
    assert len(reader._buffer) <= mailbox._CHUNK
    for _ in range(128):
        ours.sendall(bytes(1 << 16))
        assert reader.read(theirs) == ([], False)
    assert len(reader._buffer) <= 16 << 20
    assert psutil.Process().memory_info().rss - before < 64 << 20
    ours.close()
    assert reader.read(theirs) == ([], True)
    theirs.close()


@pytest.mark.parametrize("nbytes", [0, 1, 8, (1 << 20) - 8, 1 << 20, (1 << 20) + 8, (3 << 20) + 5])
def test_messages_of_every_length_are_read_whole(nbytes: int) -> None:
    """Two messages in a row, of lengths around the size up to which memory is allocated at once."""
    x = torch.arange(nbytes, dtype=torch.int64).to(torch.uint8)
    data = b"".join(mailbox._encoded("x", {"n": nbytes}, (x,))) * 2
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, found = mailbox._Reader(1), []
    for start in range(0, len(data), 50_000):
        ours.sendall(data[start : start + 50_000])
        messages, ended = reader.read(theirs)
        found += messages
        assert not ended
    assert [m.values for m in found] == [{"n": nbytes}] * 2
    assert all(torch.equal(m.tensors[0], x) for m in found)
    ours.close()
    theirs.close()


def test_a_text_that_is_too_long_is_refused_by_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_TEXT", 100)
    with pytest.raises(ValueError, match=r"a message 'x' has 1.. bytes beside its tensors, and at most 100"):
        mailbox._encoded("x", {"names": ["n" * 100]}, ())
    reader = mailbox._Reader(1)
    reader._buffer = bytearray(struct.pack("!II", 101, 0))
    with pytest.raises(Malformed, match="a text of 101 bytes"):
        reader._advance([])


def location(stack: int, *at: str) -> addresses.Facts:
    return {"host": f"n{stack}", "stack": ["kernel", 4, stack], "at": list(at)}


BRIDGE = "172.17.0.1/16"
PLACES = {
    "one host": ([location(1, "10.0.0.1/24", BRIDGE)] * 3, ["127.0.0.1"] * 3),
    "one host without a network": ([location(1)] * 2, ["127.0.0.1"] * 2),
    "two hosts": ([location(1, "10.0.0.1/24"), location(2, "10.0.0.2/24")], ["10.0.0.1", "10.0.0.2"]),
    "a bridge with one address everywhere": (
        [location(1, BRIDGE, "10.0.0.1/24"), location(2, BRIDGE, "10.0.0.2/24")],
        ["10.0.0.1", "10.0.0.2"],
    ),
    "uneven ranks and order": (
        [location(1, "10.1.0.1/16", "10.0.0.1/24")] * 2
        + [location(2, "10.0.0.2/24", "10.1.0.2/16"), location(3, "10.1.0.3/16")],
        ["10.1.0.1", "10.1.0.1", "10.1.0.2", "10.1.0.3"],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_ranks_listen_in_the_network_that_joins_them(name: str) -> None:
    ranks, right = PLACES[name]
    assert [addresses.own(rank, ranks) for rank in range(len(ranks))] == right


def test_between_routed_networks_a_rank_listens_where_it_sends_from(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [location(1, BRIDGE, "10.0.0.1/24"), location(2, BRIDGE, "10.9.0.2/24")]
    monkeypatch.setattr(addresses, "_source", {"10.9.0.2": "10.0.0.1", "10.0.0.1": "10.9.0.2"}.get)
    assert [addresses.own(rank, ranks) for rank in (0, 1)] == ["10.0.0.1", "10.9.0.2"]
    monkeypatch.setattr(addresses, "_source", lambda _: None)
    with pytest.raises(UserError, match=r"n1 has no network in common with n2 and no route to them.*--iface"):
        addresses.own(0, ranks)


def test_the_network_that_the_launcher_chose_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [("eth0", "10.0.0.1/24"), ("ib0", "10.1.0.1/16"), ("docker0", BRIDGE)]
    found = [(name, addresses.IPv4Interface(address)) for name, address in here]
    monkeypatch.setattr(addresses, "_interfaces", lambda: iter(found))
    every = [address for _, address in here]
    for network, right in {
        "": every,
        "ib0": ["10.1.0.1/16"],
        "10.1.0.0/16": ["10.1.0.1/16"],
        "docker0,eth0": ["10.0.0.1/24", BRIDGE],
        "none-here": every,
    }.items():
        assert addresses.facts(network)["at"] == right


def test_all_ranks_fail_if_one_cannot_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the same on all ranks, and no rank waits for a connection."""
    real, tried = socket.create_server, list[int]()

    def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
        tried.append(1)
        if len(tried) == 2:
            raise OSError("no port is left")
        return real(address, **options)

    monkeypatch.setattr(socket, "create_server", create_server)

    def refused(comm: Communicator) -> str:
        with pytest.raises(UserError, match=r"no port is left.*rank .* on .*127.0.0.1") as error:
            comm.mailbox()
        return str(error.value)

    began = time.monotonic()
    assert len(set(threads.run(3, refused))) == 1
    assert time.monotonic() - began < 15
